# SPDX-License-Identifier: GPL-2.0-or-later
"""facts - runs a file's unittest tests and prints them as tests/run counts them

    if __name__ == "__main__":
        facts.main()

One line for each test: "ok NAME", "not ok NAME" with the traceback below, or "skip NAME: REASON". Ends with 0, or with
1 if a test failed or none ran. Names given as arguments select tests, as with unittest.
"""
import sys
import unittest


class Printer(unittest.TestResult):
    """Prints each verdict as it comes."""

    def say(self, verdict, test, more=""):
        """One line."""
        name = test.id().rsplit(".", 1)[-1].removeprefix("test_")
        print(f"{verdict} {name}{more}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.say("ok", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.say("skip", test, f": {reason}")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.say("not ok", test)
        print(self.failures[-1][1], flush=True)

    def addError(self, test, err):
        super().addError(test, err)
        self.say("not ok", test)
        print(self.errors[-1][1], flush=True)


class Runner:
    """What unittest.main() wants."""

    def run(self, suite):
        """Run all."""
        result = Printer()
        suite.run(result)
        if not result.testsRun:
            print("not ok no test ran")
            result.errors.append((None, "no test ran"))
        return result


def main():
    """Run the tests of the file that was started."""
    program = unittest.main(module="__main__", testRunner=Runner(), exit=False)
    sys.exit(0 if program.result.wasSuccessful() else 1)
