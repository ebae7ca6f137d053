# SPDX-License-Identifier: GPL-2.0-or-later
# module.mk - build rules of guest: the Linux guest, the boot-sector guest, programs, their test

GUEST_LINUX := $(B)/guest/vmlinuz $(B)/guest/initrd.img
GUEST_BOOTSECTOR := $(B)/guest/bootsector.bin $(B)/guest/bootsector.img
GUEST_PROGRAMS := $(addprefix $(B)/guest/,dirty tick tsckhz)
GUEST_SOURCES := $(addprefix guest/,build init inittab workload nginx.conf dirty.c tick.c entropy.c)

.PHONY: guest check-guest
guest: $(GUEST_LINUX) $(GUEST_BOOTSECTOR) $(GUEST_PROGRAMS)

$(GUEST_LINUX) &: $(GUEST_SOURCES)
	guest/build $(B)/guest
	@touch $(GUEST_LINUX)

$(B)/guest/bootsector.bin: guest/bootsector.S
	@mkdir -p $(@D)
	$(CC) -m32 -c -o $(@D)/bootsector.o $<
	ld -m elf_i386 -Ttext 0x7c00 -o $(@D)/bootsector.elf $(@D)/bootsector.o
	objcopy -O binary -j .text $(@D)/bootsector.elf $@
	@test "$$(wc -c <$@)" -eq 512

# The same with room behind it for the sectors that the guest writes.
$(B)/guest/bootsector.img: $(B)/guest/bootsector.bin
	cat $< >$@.new
	truncate -s 1M $@.new
	mv $@.new $@

$(GUEST_PROGRAMS): $(B)/guest/%: guest/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -std=c11 $(LDFLAGS) -o $@ $<

# Needs root (network namespace, tap); QEMU=PROGRAM also runs the boot sector and the Linux guest.
check-guest: guest
	python3 guest/test_guest.py $(B)/guest
