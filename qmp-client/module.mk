# SPDX-License-Identifier: GPL-2.0-or-later
# module.mk - build rules of qmp-client: the library, the qmp-call tool, unit tests, the fuzz target

QMP_CFLAGS := -D_GNU_SOURCE -std=c11 -I.
QMP_OBJS := $(addprefix $(B)/qmp-client/,qmp.o qmp_json.o qmp_scan.o qmp_sync.o json_strict.o)
QMP_TESTS := $(addprefix $(B)/tests/unit/test_qmp_,scan client sync real) $(B)/tests/unit/test_json_strict
UNIT_TESTS += $(QMP_TESTS)

$(B)/qmp-client/%.o: qmp-client/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(QMP_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/libqmp.a: $(QMP_OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(B)/qmp-call: $(B)/qmp-client/qmp-call.o $(B)/libqmp.a
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -ljson-c

$(QMP_TESTS): $(B)/tests/unit/%: tests/unit/%.c $(B)/libqmp.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(QMP_CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $< $(B)/libqmp.a -lcmocka -ljson-c

# libFuzzer comes with clang only (Debian: clang, libclang-rt-14-dev or -19-dev)
$(B)/tests/fuzz/fuzz_qmp: tests/fuzz/fuzz_qmp.c $(addprefix qmp-client/,qmp.c qmp_json.c qmp_scan.c json_strict.c)
	@mkdir -p $(@D)
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined $(QMP_CFLAGS) -o $@ $^ -ljson-c

-include $(QMP_OBJS:.o=.d) $(B)/qmp-client/qmp-call.d $(QMP_TESTS:%=%.d)
