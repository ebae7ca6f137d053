# The stream: records, codecs, layout (replicator/wire.[ch], codec.[ch], layout.[ch]). No I/O in any of them.
CORE_OBJS += $(B)/replicator/wire.o $(B)/replicator/codec.o $(B)/replicator/layout.o
CORE_LIBS += -llz4 -lxxhash
