# SPDX-License-Identifier: GPL-2.0-or-later
# arbiter.mk - the arbiter's client and its unit test
CORE_OBJS += $(B)/replicator/arbiter.o
ARBITER_TESTS := $(addprefix $(B)/tests/unit/test_,arbiter)
UNIT_TESTS += $(ARBITER_TESTS)

# Built with its planted faults: the test shows that each of them is found.
$(B)/tests/unit/test_arbiter: tests/unit/test_arbiter.c replicator/arbiter.c $(B)/replicator/wire.o
	@mkdir -p $(@D)
	@echo "  TEST    $@"
	$(CC) $(CFLAGS) $(STD) $(LDFLAGS) -DARBITER_MUTANTS -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -lxxhash

-include $(ARBITER_TESTS:%=%.d)
