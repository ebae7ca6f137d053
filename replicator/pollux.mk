# SPDX-License-Identifier: GPL-2.0-or-later
# pollux.mk - the command line program
POLLUX_OBJS := $(addprefix $(B)/replicator/,pollux.o pollux_client.o pollux_show.o options.o session_table.o wire.o)
PYTHON_TESTS += tests/unit/test_cli.py tests/tools/check_man.py

$(B)/replicator/pollux.o: CFLAGS += -DPOLLUX_VERSION='"$(VERSION)"'

$(B)/pollux: $(POLLUX_OBJS) $(B)/libqmp.a
	@echo "  LD      $@"
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -ljson-c -lxxhash
