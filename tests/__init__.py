"""`python3 -m unittest` runs the modules with tests side by side, as many as there are processors
(or AT_ONCE), each by a `python3 -m unittest MODULE` of its own; what fails is shown as that told
it."""
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


class SideBySide(unittest.TestSuite):
    """A suite of modules (list of names); options: for each `python3 -m unittest`."""

    def __init__(self, names, options):
        super().__init__()
        self.names, self.options = names, options

    def countTestCases(self):
        return len(self.names)

    def run(self, result, debug=False):
        most = int(os.environ.get('AT_ONCE', os.cpu_count()))
        with concurrent.futures.ThreadPoolExecutor(most) as pool:
            for name, done in zip(self.names, pool.map(self.run_module, self.names)):
                ran = re.findall(r'(?m)^Ran (\d+) tests? in', done.stdout)
                skips = re.findall(r'(?m)^.*\(.*skipped=(\d+).*\)$', done.stdout)
                result.testsRun += int(ran[-1]) if ran else 0
                result.skipped += [(Module(name), '')] * int(skips[-1] if skips else 0)
                # 5: by -k there is nothing to run here
                if done.returncode not in (0, 5) or not ran:
                    result.failures.append((Module(name), done.stdout))
        return result

    def run_module(self, name):
        """The tests of a module in a process of their own; its CompletedProcess."""
        return subprocess.run(
            [sys.executable, '-m', 'unittest', *self.options, name], cwd=os.path.dirname(HERE),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding='utf-8', errors='replace')


class Module(unittest.TestCase):
    """What stands for a module in a result."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __str__(self):
        return self.name

    def runTest(self):
        """It is run by SideBySide.run_module()."""


def load_tests(loader, tests, pattern):
    """The protocol of unittest: all tests of this package. The longest modules come first."""
    files = glob.glob(os.path.join(HERE, '*', pattern or 'test*.py'))
    names = [os.path.relpath(file, os.path.dirname(HERE))[:-3].replace(os.sep, '.')
             for file in sorted(files, key=os.path.getsize, reverse=True)]
    wanted = [word for pattern in loader.testNamePatterns or () for word in ('-k', pattern)]
    return SideBySide(names, wanted)
