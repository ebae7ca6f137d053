# SPDX-License-Identifier: GPL-2.0-or-later
# replicator.mk - build rules of polluxd and of the objects it shares with tests

SESSION_OBJS := $(addprefix $(B)/replicator/,session.o session_table.o session_capture.o session_standby.o session_claim.o)
CORE_OBJS += $(SESSION_OBJS)
POLLUXD_OBJS := $(addprefix $(B)/replicator/,polluxd.o daemon.o peer.o status.o journal.o guest.o guest_json.o \
	link.o loop.o mailbox.o arena.o sender.o store.o control.o saver.o asker.o)
REPLICATOR_CORE = $(sort $(CORE_OBJS) $(B)/replicator/options.o $(B)/replicator/notify.o $(B)/replicator/keyfile.o \
	$(B)/replicator/statefile.o $(B)/replicator/histogram.o)

$(B)/replicator/%.o: replicator/%.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	$(CC) $(CFLAGS) $(STD) -I. -MMD -MP -c -o $@ $<

$(B)/common/%.o: common/%.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	$(CC) $(CFLAGS) $(STD) -MMD -MP -c -o $@ $<

# Other fragments add to CORE_OBJS after this one was read.
$(B)/polluxd: $(POLLUXD_OBJS) $$(REPLICATOR_CORE) $(B)/common/log.o $(B)/libqmp.a $(B)/libnetbuf.a
	@echo "  LD      $@"
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -luring -llz4 -lxxhash -ljson-c -lpthread -linih

-include $(wildcard $(B)/replicator/*.d $(B)/common/*.d)

UNIT_TESTS += $(B)/tests/unit/test_store
$(B)/tests/unit/test_store: tests/unit/test_store.c $(addprefix $(B)/replicator/,store.o arena.o codec.o wire.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(STD) -I. $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -llz4 -lxxhash

UNIT_TESTS += $(B)/tests/unit/test_loop
$(B)/tests/unit/test_loop: tests/unit/test_loop.c $(B)/replicator/loop.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(STD) -I. $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -luring

UNIT_TESTS += $(B)/tests/unit/test_journal
$(B)/tests/unit/test_journal: tests/unit/test_journal.c $(addprefix $(B)/replicator/,journal.o session_table.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(STD) -I. $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -ljson-c

UNIT_TESTS += $(B)/tests/unit/test_saver
$(B)/tests/unit/test_saver: tests/unit/test_saver.c $(addprefix $(B)/replicator/,saver.o statefile.o keyfile.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(STD) -I. $(LDFLAGS) -Wl,--wrap=fsync -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -lxxhash -lpthread

PYTHON_TESTS += tests/unit/test_fake_qemu.py
