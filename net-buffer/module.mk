# SPDX-License-Identifier: GPL-2.0-or-later
# module.mk - build rules of net-buffer: one static library of pure code, and its unit tests

NETBUF_CFLAGS := -D_GNU_SOURCE -std=c11 -I.
NETBUF_OBJS := $(addprefix $(B)/net-buffer/,hold.o announce.o)
NETBUF_TESTS := $(addprefix $(B)/tests/unit/test_,hold announce)
UNIT_TESTS += $(NETBUF_TESTS) $(B)/tests/unit/test_histogram
# Held output on the patched QEMU; skipped while there is none.
PYTHON_TESTS += $(sort $(wildcard tests/qemu/test_output_*.py))

$(NETBUF_OBJS): $(B)/net-buffer/%.o: net-buffer/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NETBUF_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/libnetbuf.a: $(NETBUF_OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(NETBUF_TESTS): $(B)/tests/unit/%: tests/unit/%.c $(B)/libnetbuf.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NETBUF_CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $< $(B)/libnetbuf.a -lcmocka

$(B)/tests/unit/test_histogram: tests/unit/test_histogram.c replicator/histogram.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NETBUF_CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c,$^) -lcmocka

-include $(NETBUF_OBJS:.o=.d) $(NETBUF_TESTS:%=%.d) $(B)/tests/unit/test_histogram.d
