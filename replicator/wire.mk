# SPDX-License-Identifier: GPL-2.0-or-later
# wire.mk - the stream: records, codecs, layout; their unit tests, fuzz targets and bench
#
# CORE_OBJS and CORE_LIBS are for whoever links the core; their objects are compiled by the including Makefile's
# rule for $(B)/replicator/%.o.

WIRE_OBJS := $(addprefix $(B)/replicator/,wire.o codec.o layout.o)
WIRE_LIBS := -llz4 -lxxhash
WIRE_SOURCES := $(addprefix replicator/,wire.c codec.c layout.c)
WIRE_TESTS := $(addprefix $(B)/tests/unit/test_,wire codec layout stream)
WIRE_FUZZERS := $(addprefix $(B)/tests/fuzz/fuzz_,wire codec layout)
WIRE_CFLAGS := -D_GNU_SOURCE -std=c11 -I.

CORE_OBJS += $(WIRE_OBJS)
CORE_LIBS += $(WIRE_LIBS)
UNIT_TESTS += $(WIRE_TESTS)
BENCHES += $(B)/bench/bench_codec
FUZZERS += $(WIRE_FUZZERS)

$(WIRE_TESTS): $(B)/tests/unit/%: tests/unit/%.c $(WIRE_OBJS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WIRE_CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $< $(WIRE_OBJS) $(WIRE_LIBS) -lcmocka

$(B)/bench/bench_codec: tests/bench/bench_codec.c $(WIRE_OBJS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WIRE_CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $< $(WIRE_OBJS) $(WIRE_LIBS)

# libFuzzer needs clang; run one as: $(B)/tests/fuzz/fuzz_wire -max_total_time=60 -max_len=8192
$(WIRE_FUZZERS): $(B)/tests/fuzz/%: tests/fuzz/%.c $(WIRE_SOURCES)
	@mkdir -p $(@D)
	$(FUZZ_CC) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $(WIRE_CFLAGS) \
		-MMD -MP -MF $@.d -o $@ $(filter %.c,$^) $(WIRE_LIBS)

FUZZ_CC ?= clang-14

-include $(WIRE_TESTS:%=%.d) $(WIRE_FUZZERS:%=%.d) $(B)/bench/bench_codec.d
