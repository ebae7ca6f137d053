# SPDX-License-Identifier: GPL-2.0-or-later
# sim.mk - the simulator and the session's unit tests; both use the session built with its planted faults
SIM_SOURCES := $(addprefix tests/sim/,main.c core.c qemu.c net.c register.c side.c oracle.c fault.c scenario.c)
SESSION_SOURCES := $(addprefix replicator/,session.c session_table.c session_capture.c session_standby.c session_claim.c)
SIM_OBJS := $(SIM_SOURCES:tests/sim/%.c=$(B)/tests/sim/%.o) $(SESSION_SOURCES:replicator/%.c=$(B)/tests/sim/under-test/%.o)
SESSION_TESTS := $(B)/tests/unit/test_session $(B)/tests/unit/test_session_operator
UNIT_TESTS += $(SESSION_TESTS)
# Thousands of times faster than real time is the point: always optimised, and all of it together.
SIM_FLAGS := -O2 -flto

$(B)/tests/sim/%.o: tests/sim/%.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	$(CC) $(CFLAGS) $(STD) $(SIM_FLAGS) -DSESSION_MUTANTS -MMD -MP -c -o $@ $<

$(B)/tests/sim/under-test/%.o: replicator/%.c
	@mkdir -p $(@D)
	@echo "  CC      $< (with planted faults)"
	$(CC) $(CFLAGS) $(STD) $(SIM_FLAGS) -DSESSION_MUTANTS -MMD -MP -c -o $@ $<

$(B)/tests/sim/sim: $(SIM_OBJS)
	@echo "  LD      $@"
	$(CC) $(CFLAGS) $(SIM_FLAGS) $(LDFLAGS) -o $@ $^

$(SESSION_TESTS): $(B)/tests/unit/%: tests/unit/%.c $(SESSION_SOURCES)
	@mkdir -p $(@D)
	@echo "  TEST    $@"
	$(CC) $(CFLAGS) $(STD) $(LDFLAGS) -DSESSION_MUTANTS -MMD -MP -MF $@.d -o $@ $(filter %.c,$^) -lcmocka

-include $(SIM_OBJS:.o=.d) $(addsuffix .d,$(SESSION_TESTS))
