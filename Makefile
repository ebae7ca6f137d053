# SPDX-License-Identifier: GPL-2.0-or-later
# Makefile - builds Pollux, its guests and its QEMU, and runs what proves them. `make help` lists the targets.

B ?= build
CC ?= gcc
V ?= 0
O ?= -O2
WARN := -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes \
        -Wformat=2 -Wvla -Wundef -Wno-missing-field-initializers
CFLAGS ?= $(O) -g $(WARN) $(if $(CI),-Werror) -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE
LDFLAGS ?= -pie -Wl,-z,relro,-z,now
STD := -std=c11 -D_GNU_SOURCE
PREFIX ?= /usr/local
VERSION := 0.1
$(V:0=).SILENT:

UNIT_TESTS :=
PYTHON_TESTS :=
CORE_OBJS :=
CORE_LIBS :=
BENCHES :=
FUZZERS := $(B)/tests/fuzz/fuzz_qmp
PROGRAMS := $(B)/polluxd $(B)/pollux $(B)/witness $(B)/qmp-call

.PHONY: all
all: programs

# Prerequisites that fragments add to are expanded when all of them were read.
.SECONDEXPANSION:

include qmp-client/module.mk net-buffer/module.mk witness/module.mk guest/module.mk
include $(wildcard replicator/*.mk)
-include tests/module.mk

.PHONY: programs deps qemu demo test bench lint fuzz install uninstall clean help check-unit check-sim check-lab check-qemu
programs: $(PROGRAMS)

deps:
	ci/install-deps

qemu: deps
	ci/build-qemu

demo: deps
	$(MAKE) -j$(shell nproc) qemu programs guest
	tests/lab/demo

test: deps
	$(MAKE) -j$(shell nproc) qemu programs guest unit-programs
	tests/run

# Ratios, each side measured in the same run; never part of the tests. BENCH_SECONDS makes it longer.
bench: deps
	$(MAKE) -j$(shell nproc) qemu programs guest bench-programs
	tests/bench/run

.PHONY: bench-programs
bench-programs: $$(BENCHES)

# Lists, so that the runner and this file cannot disagree about what there is.
.PHONY: unit-programs
unit-programs: programs $$(UNIT_TESTS) $(B)/tests/sim/sim
	printf '%s\n' $(UNIT_TESTS) >$(B)/unit-tests.list
	printf '%s\n' $(PYTHON_TESTS) >$(B)/python-tests.list

check-unit: unit-programs
	tests/run unit python

check-sim: unit-programs
	tests/run sim

check-lab: deps
	$(MAKE) -j$(shell nproc) qemu programs guest unit-programs
	tests/run qemu lab

check-qemu: deps
	ci/check-qemu

lint: unit-programs
	ci/install-deps lint
	ci/lint

# Each target for FUZZ_SECONDS; a finding is left in $(B)/fuzz and fails.
FUZZ_SECONDS ?= 30
fuzz: $$(FUZZERS)
	mkdir -p $(B)/fuzz
	for f in $(FUZZERS); do $$f -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -artifact_prefix=$(B)/fuzz/ || exit 1; done

install: programs
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(B)/polluxd $(B)/witness $(DESTDIR)$(PREFIX)/sbin/
	install -m 755 $(B)/pollux $(B)/qmp-call $(DESTDIR)$(PREFIX)/bin/
	install -m 644 docs/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 docs/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/sbin/,polluxd witness) $(addprefix $(DESTDIR)$(PREFIX)/bin/,pollux qmp-call)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man1/,$(notdir $(wildcard docs/man/*.1)))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,$(notdir $(wildcard docs/man/*.8)))

clean:
	rm -rf $(B)

help:
	@echo "make demo    boot a real guest on two hosts, protect it, kill one, show that nothing was lost"
	@echo "             (ROUNDS=N repeats, WORKLOAD=redis|nginx, UNSAFE=1 shows what happens without holding output)"
	@echo "make test    every test; ends with a line of counts"
	@echo "make bench   pause, latency and bytes, each beside its baseline"
	@echo "make qemu    get, patch and build QEMU (cached); QEMU_SRC=DIR uses an unpacked source"
	@echo "make check-unit check-sim check-lab check-qemu   parts of the tests; check-qemu runs QEMU's own"
	@echo "make all lint fuzz install uninstall clean"
