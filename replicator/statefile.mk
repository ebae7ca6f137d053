# SPDX-License-Identifier: GPL-2.0-or-later
# statefile.mk - unit tests of keyfiles and what is made of them: the state file, the witness's registers
KEYFILE_TESTS := $(addprefix $(B)/tests/unit/test_,keyfile statefile registers)
UNIT_TESTS += $(KEYFILE_TESTS)
FAULT_DISK_LDFLAGS := -Wl,--wrap=fsync,--wrap=fdatasync,--wrap=syncfs,--wrap=pwrite,--wrap=write,--wrap=renameat,--wrap=openat

$(B)/tests/unit/test_statefile: $(B)/replicator/statefile.o
$(B)/tests/unit/test_registers: $(B)/witness-obj/registers.o $(B)/replicator/wire.o
$(KEYFILE_TESTS): $(B)/tests/unit/%: tests/unit/%.c $(B)/replicator/keyfile.o
	@mkdir -p $(@D)
	@echo "  TEST    $@"
	$(CC) $(CFLAGS) $(STD) $(LDFLAGS) $(FAULT_DISK_LDFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) -lcmocka -lxxhash

-include $(KEYFILE_TESTS:%=%.d)
