"""Death and errors at calls that change files, from within the program: what tests/faults.py does
at every system call, in short, and for machines without strace."""
import re
import sys
import tempfile
import unittest
from unittest import mock

from tests import fault_line
from tests.fault_line import FAULTS, SCENARIOS, Case

# Executed before the program's main: counts the calls that change files below `roots`, and at the
# one with `number` kills the program, raises an error, or writes but half of the data and nothing
# after that. The labels of all calls go to the file `log`.
CODE = r'''
def break_it(roots, number, fault, log):
    import builtins, errno, io, itertools, os, signal
    count, paths, full, real_open = itertools.count(1), {}, [], builtins.open

    def reached(name, *given):
        """Whether this call, if it is one of those that count, is the one. Fails if it must."""
        given = [os.fspath(path) for path in given]
        if not given[-1].startswith(tuple(roots)):
            return False
        with real_open(log, 'a') as file:
            file.write(' '.join([name] + given) + '\n')
        if next(count) != number:
            return False
        if fault == 'KILL':
            os.kill(os.getpid(), signal.SIGKILL)
        if fault != 'half':
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code), *given[:1])
        return True

    def on_paths(name, plain):
        def call(*args, **options):
            reached(name, *[arg for arg in args if isinstance(arg, (str, os.PathLike))])
            return plain(*args, **options)
        return call

    def on_file(name, plain):
        def call(fd, *args):
            reached(name, paths.get(fd, ''))
            return plain(fd, *args)
        return call

    for name in 'mkdir rename replace link unlink remove rmdir chmod utime symlink'.split():
        setattr(os, name, on_paths(name, getattr(os, name)))
    for name in 'fsync', 'fchmod', 'fchown', 'ftruncate':
        setattr(os, name, on_file(name, getattr(os, name)))
    real_os_open = os.open

    def open_descriptor(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            reached('open', path)
        fd = real_os_open(path, flags, *args, **options)
        paths[fd] = path
        return fd
    os.open = open_descriptor

    class Raw(io.FileIO):
        def write(self, data):
            if full and self.fileno() in full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if reached('write', paths.get(self.fileno(), self.name)):
                full.append(self.fileno())
                data = bytes(data)[:len(data) // 2]
            return super().write(data)

    def open_file(file, mode='r', *args, **options):
        if not set(mode) & set('wax+'):
            return real_open(file, mode, *args, **options)
        if not isinstance(file, int):
            reached('open', file)
        raw = io.BufferedWriter(Raw(file, mode.replace('b', '')))
        return raw if 'b' in mode else io.TextIOWrapper(raw, *args[1:], **options)
    builtins.open = open_file
break_it(%r, %r, %r, %r)
'''


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = fault_line.memory_folder()
        cls.folders = mock.patch.object(tempfile, 'tempdir', folder or tempfile.tempdir)
        cls.folders.start()
        cls.ca = fault_line.CA().start()

    @classmethod
    def tearDownClass(cls):
        cls.ca.stop()
        cls.folders.stop()

    def run_case(self, case, number, fault):
        """One run of the scenario with a fault; the run, and labels of the calls up to it."""
        case.restore()
        log = case.line.path('calls')
        done = case.run(*case.scenario.args, code=CODE % (case.roots, number, fault, log))
        with open(log) as file:
            return done, [case.short(line.rstrip('\n')) for line in file]

    def check(self, name, kills, errors):
        """Kill at `kills` of the points of a scenario, spread evenly, and at `errors` others let
        calls fail."""
        with Case(SCENARIOS[name], self.ca) as case:
            done, labels = self.run_case(case, 0, 'KILL')
            self.assertEqual((done.returncode, done.stderr, case.settle()), (0, '', []))
            self.assertGreater(len(labels), 10)
            for index in range(kills):
                number = 1 + index * len(labels) // kills
                with self.subTest('%s: killed before %s' % (name, labels[number - 1])):
                    done, seen = self.run_case(case, number, 'KILL')
                    self.assertEqual((done.returncode, seen), (-9, labels[:number]))
                    self.assertEqual(case.right_after(
                        labels[number - 1].replace('replace ', 'rename ')) + case.settle(), [])
            for index in range(errors):
                number = 1 + (2 * index + 1) * len(labels) // (2 * errors)
                error, label = sorted(FAULTS)[index % 4], labels[number - 1]
                with self.subTest('%s: %s at %s' % (name, error, label)):
                    done, seen = self.run_case(case, number, error)
                    self.assertEqual(seen[:number], labels[:number])
                    self.assertEqual(case.after_error(
                        label.replace('replace ', 'rename '), error, done) + case.settle(), [])
            return labels

    def test_init(self):
        self.check('init', 3, 1)

    def test_renew(self):
        labels = self.check('renew', 3, 2)
        for needed in ('write certs/live.crt.tmp', 'replace certs/live.crt.tmp certs/live.crt',
                       'unlink challenges/TOKEN', 'fsync certs/live.state.tmp'):
            self.assertIn(needed, labels)

    def test_rollover(self):
        self.check('rollover', 3, 1)

    def test_unstage(self):
        labels = self.check('unstage', 9, 4)
        self.assertIn('replace certs/staging.crt certs/live.crt', labels)

    def test_unstage_to_another_file_system(self):
        if not fault_line.other_file_system(tempfile.gettempdir()):
            self.skipTest('there is no other file system')
        labels = self.check('far-unstage', 4, 2)
        self.assertTrue([label for label in labels if re.match('write far/backups', label)])

    def test_adoption(self):
        self.check('2017', 2, 1)

    def test_crash_between_the_renames(self):
        self.check('half-unstaged', 2, 1)

    def test_disk_full_in_the_middle_of_a_write(self):
        """A short write, after which there is no room, never ends in a rename."""
        with Case(SCENARIOS['renew'], self.ca) as case:
            _, labels = self.run_case(case, 0, 'KILL')
            writes = [(number, label) for number, label in enumerate(labels, 1)
                      if label.startswith('write')]
            self.assertGreaterEqual(len(writes), 4)
            for number, label in writes:
                with self.subTest(label):
                    done, _ = self.run_case(case, number, 'half')
                    self.assertEqual(case.after_error(label, 'ENOSPC', done), [])
                    self.assertEqual(case.settle(), [])

    def test_it_would_notice(self):
        """The checks find what is broken on purpose."""
        with Case(SCENARIOS['unstage'], self.ca) as case:
            def broken(change):
                case.restore()
                change()
                return case.right_after()

            def cut():
                with open(case.line.crt(), 'r+') as file:
                    file.truncate(100)

            def lose():
                fault_line.os.replace(case.line.key('staging'), case.line.key())

            def show():
                fault_line.os.chmod(case.line.key(), 0o640)

            case.restore()
            self.assertEqual(case.right_after(), [])
            self.assertIn('certs/live.crt is not whole', broken(cut))
            self.assertIn('keys/live.key is lost', broken(lose))
            self.assertIn('keys/live.key has mode 640', broken(show))
            self.assertIn('there is still a staged pair', case.in_the_end())


if __name__ == '__main__':
    sys.exit(unittest.main())
