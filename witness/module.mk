# SPDX-License-Identifier: GPL-2.0-or-later
# module.mk - build rules of the witness. Objects are in witness-obj: $(B)/witness is the program.

WITNESS_OBJS := $(addprefix $(B)/witness-obj/,witness.o server.o registers.o)
WITNESS_CORE := $(B)/common/log.o $(addprefix $(B)/replicator/,wire.o keyfile.o notify.o options.o histogram.o)
PYTHON_TESTS += tests/unit/test_witness.py

$(B)/witness-obj/%.o: witness/%.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	$(CC) $(CFLAGS) $(STD) -DPOLLUX_VERSION='"$(VERSION)"' -MMD -MP -c -o $@ $<

$(B)/witness: $(WITNESS_OBJS) $(WITNESS_CORE)
	@echo "  LD      $@"
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lxxhash

-include $(WITNESS_OBJS:.o=.d)
