#!/usr/bin/env python3
"""Stops the program before every system call that changes a file, lets each of these calls fail,
and looks at what is left; and watches which system calls ever see a private key.

    python3 tests/faults.py [--quick] [SCENARIO...]

Needs strace. A first run of each scenario, watched, shows the calls; then every one of them has
a run of its own with SIGKILL before it, and one with each error in its place. Ends with
"N passed, N failed, N skipped"; a point with a fault is one test.
"""
import argparse
import collections
import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests import fault_line, fault_trace, fault_watch
from tests.fault_line import FAULTS, SCENARIOS, Case
from tests.fault_trace import calls_in, changes_file, paths_of

tempfile.tempdir = fault_line.memory_folder()
PARTS = 2       # processes at a time
READING = 'renew', 'at-once', 'far-unstage'     # where reading fails, too
# name: of the call; count: how many of that name come up to it on the paths that are watched;
# label: for people and for telling it again; change: whether it changes a file, or but reads
Point = collections.namedtuple('Point', 'name count label change')


def label(case, call):
    return ' '.join([call.name] + [case.short(path) for path in paths_of(call)])


class Tracer:
    """Runs a case under strace."""

    def __init__(self, case):
        self.case = case
        self.folder = tempfile.TemporaryDirectory(prefix='trace-')
        self.file = os.path.join(self.folder.name, 'log')
        self.paths, self.points, self.children = [], [], []

    def run(self, *options, anew=False):
        """One run of the scenario, from the state before it. Returns it and its calls. anew: the
        real start of the program, and its children too."""
        self.case.restore()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file)
        strace = ['strace', '-qq', '-y', '-o', self.file, *options]
        strace += fault_trace.only(fault_trace.CHANGES + (
            [] if anew else fault_trace.READS + fault_trace.LOOKS))
        done = self.case.run(*self.case.scenario.args, **(
            {'prefix': strace + ['-f', '--seccomp-bpf']} if anew else {'strace': strace}))
        return done, [call for call in calls_in(self.file) if call.name not in fault_trace.LOOKS]

    def enumerate(self):
        """Find all points; returns what is wrong (list of str) in the runs without faults."""
        done, calls = self.run(anew=True)
        wrong = ['run: exit status %d: %s' % (done.returncode, done.stderr)] if (
            done.returncode) else []
        main = calls[0].pid
        ours = tuple(self.case.roots)
        mine = [call for call in calls if call.pid == main and changes_file(call)
                and any(path.startswith(ours) for path in paths_of(call))]
        # The hooks of the tests write their log; all else must be the program's own doing
        wrong += ['another process: %s' % label(self.case, call) for call in calls
                  if call.pid != main and changes_file(call)
                  and not set(paths_of(call)) & {self.case.log, '/dev/null', '/dev/tty'}]
        wrong += ['outside: %s' % label(self.case, call) for call in calls
                  if call.pid == main and changes_file(call) and call not in mine
                  and not re.match('%s|/dev/null|.*/__pycache__/' % self.case.store,
                                   (paths_of(call) or [''])[0])]
        # Names with the time in them differ from run to run: their other halves will do
        self.paths = sorted({path for call in mine for path in paths_of(call)
                             if not re.search(r'\d{8}-\d{6}', path)})
        done, again = self.run(*self.filter())
        counts = collections.Counter()
        for call in again:
            counts[call.name] += 1
            self.points.append(Point(call.name, counts[call.name], label(self.case, call),
                                     changes_file(call)))
        labels = [point.label for point in self.points if point.change], [
            label(self.case, call) for call in mine]
        if labels[0] != labels[1]:
            wrong.append('two runs differ: %s' % sorted(set(labels[0]) ^ set(labels[1])))
        return wrong + self.case.settle()

    def filter(self):
        return [word for path in self.paths for word in ('-P', path)]

    def kill(self, point):
        """Kill the program before the call; True if it was the right one."""
        _, calls = self.run(*self.filter(), '-e', 'inject=%s:signal=KILL:when=%d' % point[:2])
        return bool(calls) and label(self.case, calls[-1]) == point.label and (
            calls[-1].result.startswith('?'))

    def fail(self, point, error):
        """Let the call fail; the run, and whether it was the right call."""
        done, calls = self.run(*self.filter(), '-e', 'inject=%s:error=%s:when=%d' % (
            point.name, error, point.count))
        hit = [call for call in calls if 'INJECTED' in call.result]
        return done, [label(self.case, call) for call in hit] == [point.label]


# kind: 'point' or 'read' (where a fault could be), or of a test: 'kill', 'error', 'watch' or 'run'
# (without faults); wrong: what was found (list of str)
Test = collections.namedtuple('Test', 'kind where wrong')


def run_part(task):
    """Name of the scenario and all Tests at the points of one part of it."""
    name, part, quick = task
    with tempfile.TemporaryDirectory() as folder, fault_line.CA(folder=folder) as ca:
        if name == 'watch':
            return name, [Test('watch', *found) for found in fault_watch.run(ca, quick)]
        with Case(SCENARIOS[name], ca) as case:
            return name, list(tests_of(case, part, quick))


def tests_of(case, part, quick):
    """All Tests at the points of one part of a scenario."""
    tracer = Tracer(case)
    yield Test('run', 'without faults', tracer.enumerate())
    points = [point for point, last in zip(tracer.points, [None, *tracer.points])
              if case.scenario.only in point.label and (
                  point.change or case.scenario.name in READING
                  and (not last or point[::2] != last[::2]))]
    step = max(1, len(points) // 8) if quick else 1
    for number, point in enumerate(points):
        if number // step % PARTS != part:
            continue
        yield Test('point' if point.change else 'read', point.label, [])
        if number % step:
            continue
        where = '%s (#%d of %d)' % (point.label, number + 1, len(points))
        errors = sorted(FAULTS)[number % 4:][:1] if quick else FAULTS
        if point.change:
            missed = [] if tracer.kill(point) or tracer.kill(point) else ['was not reached']
            yield Test('kill', 'killed before ' + where,
                       missed + case.right_after(point.label) + case.settle())
        for error in errors if point.change else ['EIO']:
            done, hit = tracer.fail(point, error)
            if not hit:
                done, hit = tracer.fail(point, error)
            yield Test('error', '%s at %s' % (error, where), (
                [] if hit else ['was not reached']) + case.after_error(point.label, error, done)
                + case.settle(remember=True))
    if part == 0:
        yield from deaths_in_hooks(case)


def deaths_in_hooks(case):
    """Tests in which the program dies when a hook has done its work."""
    case.restore()
    before = len(case.hook_calls())
    case.run(*case.scenario.args)
    for hook in sorted({call[0] for call in case.hook_calls()[before:]}):
        case.restore()
        case.in_hook(hook, 'rm "%s.$HOOK"; kill -KILL $PPID' % case.log)
        missed = [] if case.run(*case.scenario.args).returncode == -9 else ['was not reached']
        yield Test('kill', 'killed in ' + hook, missed + case.right_after() + case.settle())


def report(name, tests):
    """Print what was found in a scenario."""
    kinds = collections.Counter(test.kind for test in tests)
    print('%-14s%4d points,%3d reads,%4d kills,%5d errors,%3d other checks,%3d failed' % (
        name, kinds['point'], kinds['read'], kinds['kill'], kinds['error'],
        kinds['run'] + kinds['watch'], sum(bool(test.wrong) for test in tests)))
    where = {}
    for test in tests:
        for text in dict.fromkeys(test.wrong):
            where.setdefault(text, []).append(test.where)
    for text, places in where.items():
        more = ' and %d more' % (len(places) - 3) if places[3:] else ''
        print('    %s\n        %s%s' % (text, ', '.join(places[:3]), more))
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description='Death and errors at every system call.')
    parser.add_argument('--quick', action='store_true', help='only a few points of each scenario')
    parser.add_argument('scenarios', nargs='*', metavar='SCENARIO',
                        help='of: watch %s' % ' '.join(SCENARIOS))
    args = parser.parse_args()
    names = args.scenarios or ['watch', *SCENARIOS]
    if set(names) - {'watch', *SCENARIOS}:
        parser.error('no such scenario: %s' % ' '.join(set(names) - {'watch', *SCENARIOS}))
    if subprocess.call(['strace', '-qq', '-o', os.devnull, 'true']):
        sys.exit('strace cannot trace here')
    start, tests, skipped = time.monotonic(), {}, 0
    if not fault_line.other_file_system(tempfile.gettempdir()):
        print('far-*: skipped, there is no other file system')
        names = [name for name in names if not name.startswith('far-')]
        skipped = 1
    tasks = [(name, part, args.quick) for name in names
             for part in range(1 if name == 'watch' else PARTS)]
    left = collections.Counter(task[0] for task in tasks)
    with multiprocessing.Pool(PARTS) as pool:
        for name, found in pool.imap_unordered(run_part, tasks, 1):
            tests.setdefault(name, []).extend(found)
            left[name] -= 1
            if not left[name]:
                report(name, tests[name])
    done = [test for found in tests.values() for test in found
            if test.kind not in ('point', 'read')]
    failed = sum(bool(test.wrong) for test in done)
    print('%d s\n%d passed, %d failed, %d skipped' % (
        time.monotonic() - start, len(done) - failed, failed, skipped))
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
