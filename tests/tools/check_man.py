#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""check_man - the options that programs print with --help, against those of their man pages

    check_man.py [--build DIR] [--man DIR] [PROGRAM...]

Ends with 0 if they are equal, 1 if not or if a program or page is missing. First shows on planted differences that each
kind is found. Prints lines as tests/run counts them.

Also runs `mandoc -T lint` on the pages, if mandoc is there. An option is a line "  --name [VALUE]  text" in the help
and an item ".It Fl -name [Ar VALUE]" in the page. The verbs of pollux have a section (.Ss) each, which lists what the
options for all verbs (.Sh OPTIONS) do not.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PAGES = {"pollux": "pollux.1", "polluxd": "polluxd.8", "witness": "witness.8"}
HELP_LINE = re.compile(r"^  --([a-z0-9-]+)(?: ([^\s]+))?(?=\s|$)")
HELP_VERB = re.compile(r"^  ([a-z]+) {2,}\S")
ITEM = re.compile(r"^\.It Fl -([a-z0-9-]+)(?: Ar (\S+))?\s*$")


def options_of_help(text):
    """{name: value or None} of a --help text."""
    found = (HELP_LINE.match(line) for line in text.splitlines())
    return {m.group(1): m.group(2) for m in found if m}


def verbs_of_help(text):
    """Names of the verbs in a --help text."""
    return [m.group(1) for m in map(HELP_VERB.match, text.splitlines()) if m]


def options_of_page(text):
    """{section: {name: value or None}}: sections are "OPTIONS" and the verbs."""
    sections, now = {}, None
    for line in text.splitlines():
        if line.startswith(".Sh ") or line.startswith(".Ss "):
            now = sections.setdefault(line[4:].strip(), {})
        elif line.startswith(".It Fl"):
            m = ITEM.match(line)
            if m and now is not None:
                now[m.group(1)] = m.group(2)
    return sections


def differences(where, help_options, page_options):
    """Sentences."""
    out = [f"{where}: --{n} is in --help and not in the page" for n in sorted(help_options.keys() - page_options.keys())]
    out += [f"{where}: --{n} is in the page and not in --help" for n in sorted(page_options.keys() - help_options.keys())]
    out += [f"{where}: --{n} takes \"{help_options[n]}\" in --help and \"{page_options[n]}\" in the page"
            for n in sorted(help_options.keys() & page_options.keys()) if help_options[n] != page_options[n]]
    return out


def compare(program, ask, page):
    """Differences of one program; ask(*args) gives its output."""
    top = ask("--help")
    common = options_of_help(top)
    sections = options_of_page(page)
    if not common:
        return [f"{program}: --help lists no options"]
    out = differences(program, common, sections.get("OPTIONS", {}))
    for verb in verbs_of_help(top):
        own = {n: v for n, v in options_of_help(ask(verb, "--help")).items() if n not in common}
        out += differences(f"{program} {verb}", own, sections.get(verb, {}))
        if verb not in sections:
            out.append(f"{program} {verb}: the page has no section for it")
    return out


def self_test():
    """Each planted difference must be found, and none where there is none."""
    helps = {("--help",): "  run       do it\n\n  --vm NAME      text\n  --help         text\n",
             ("run", "--help"): "  --fast         text\n  --vm NAME      text\n  --help    text\n"}
    page = ".Sh OPTIONS\n.It Fl -vm Ar NAME\n.It Fl -help\n.Ss run\n.It Fl -fast\n"

    def count(text):
        return len(compare("p", lambda *args: helps[args], text))
    results = [count(page) == 0, count(page.replace(".It Fl -help\n", "")) == 1, count(page + ".It Fl -slow\n") == 1,
               count(page.replace("NAME", "VM")) == 1, count(page.replace(".It Fl -fast", ".It Fl -fast Ar N")) == 1,
               count(page.replace(".Ss run", ".Ss walk")) == 2, count("") == 4]
    print("ok planted_differences_are_found" if all(results) else f"not ok planted_differences_are_found: {results}")
    return 0 if all(results) else 1


def main():
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.environ.get("B", os.path.join(HERE, "..", "..", "build")))
    parser.add_argument("--man", default=os.path.join(HERE, "..", "..", "docs", "man"))
    parser.add_argument("program", nargs="*", help="default: all")
    args = parser.parse_args()
    failed = self_test()
    for program in args.program or PAGES:
        binary, page = os.path.join(args.build, program), os.path.join(args.man, PAGES[program])

        def ask(*words, path=binary):
            return subprocess.run([path, *words], capture_output=True, text=True, timeout=10, check=True).stdout
        bad = []
        if os.path.exists(binary):
            with open(page, encoding="utf-8") as f:
                bad += compare(program, ask, f.read())
        else:
            bad.append(f"{program}: {binary} is not built")
        if shutil.which("mandoc"):
            lint = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True, timeout=10,
                                  check=False)
            bad += [line.strip() for line in (lint.stdout + lint.stderr).splitlines()
                    if "referenced manual not found" not in line]  # depends on what is installed
        failed |= bool(bad)
        print(f"{'not ok' if bad else 'ok'} man_page_of_{program}_agrees_with_its_help", *bad, sep="\n    ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
