"""The contract with hooks: how they are run, when, and when they count as done."""
import os
import signal
import time
import unittest

from tests.support import wait_for
from tests.test_commands import DAY, HOUR, Case, alive, plant, read, write

CERTCHANGE, KEYCHANGE = 'post-certchange', 'post-keychange'


class Contract(Case):
    """What a hook finds when it is run."""

    def seen(self, script, **options):
        """What a hook (shell) with this line's post-certchange writes to its descriptor 9."""
        path = self.line.path('seen')
        self.line.hook(CERTCHANGE, 'exec 9>%s\n%s' % (path, script))
        self.line.edit_state(lambda state: state.clear())
        self.line.run('cron', hooks=True, check=0, **options)
        return read(path).decode()

    def test_environment(self):
        line = self.use(domains=['Example.org', 'www.example.org'], staging_hours=48)
        plant(line, self.ca, names=['example.org', 'www.example.org'])
        line.hook(KEYCHANGE)
        stray = {'STAGING_CRT': '/evil', 'STAGING_KEY': '/evil', 'HOOK': 'evil',
                 'LIVE_KEY': '/evil', 'MINE': 'kept'}
        found = dict(text.split('=', 1) for text in self.seen('env >&9', env=stray).splitlines())
        wanted = {'HOOK': CERTCHANGE, 'CONFIG': line.config, 'MINE': 'kept',
                  'DOMAINS': 'example.org www.example.org', 'LIVE_CRT': line.crt(),
                  'LIVE_KEY': line.key(), 'PATH': os.environ['PATH']}
        self.assertEqual({name: found.get(name) for name in wanted}, wanted)
        self.assertEqual([name for name in found if name.startswith('STAGING')], [])
        self.assertNotIn('PRIVATE', str(found))
        line.run('renew', '--new-key', hooks=True, check=0, env=stray)
        call = line.calls()[-1]
        self.assertEqual((call['HOOK'], call['STAGING_CRT'], call['STAGING_KEY']),
                         (KEYCHANGE, line.crt('staging'), line.key('staging')))

    def test_arguments_input_and_descriptors(self):
        line = self.settled()
        self.assertEqual(self.seen('echo $# >&9\ncat >&9'), '0\n')
        line.edit_state(lambda state: state.clear())
        with open(line.config) as file:     # the program's own standard input
            self.assertEqual(self.shell('', '-k', 'cron', stdin=file).returncode, 0)
        self.assertEqual(read(line.path('seen')), b'0\n')
        fds = self.seen('exec 9>&-\nls -l /proc/$$/fd > %s' % self.line.path('seen'), real=True)
        self.assertIn('/dev/null', fds)
        for word in 'live.lock', 'account', 'live.key':
            self.assertNotIn(word, fds)

    def test_failure_counts_though_dead_children_are_not_told(self):
        """Who starts us may ignore SIGCHLD, and then every child would seem to exit 0."""
        line = self.settled()
        line.hook(CERTCHANGE, 'exit 3')
        ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            done = line.start('cron', hooks=True)
        finally:
            signal.signal(signal.SIGCHLD, ignored)
        _, err = done.communicate(timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn('exit status 3', err)

    def test_no_shell_between(self):
        """A path is a path, whatever is in it; a link is followed."""
        line = self.settled()
        line.hook(CERTCHANGE)
        odd = line.path('hook; touch $(echo oops) & "')
        os.rename(line.path(CERTCHANGE), odd)
        os.symlink(odd, line.path('link'))
        for path in odd, line.path('link'):
            line.set(post_certchange=path)
            line.edit_state(lambda state: state.clear())
            line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), 2 * [CERTCHANGE])

    def test_output_is_passed_through(self):
        line = self.settled()
        line.hook(CERTCHANGE, 'echo reloading; echo careful >&2')
        done = line.run('cron', hooks=True, check=0)
        self.assertEqual((done.stdout, done.stderr),
                         ('Running post-certchange\nreloading\n', 'careful\n'))

    def test_much_output(self):
        line = self.settled()
        line.hook(CERTCHANGE, 'head -c 3000000 /dev/zero | tr "\\0" a\n'
                  'head -c 3000000 /dev/zero | tr "\\0" b >&2')
        done = line.run('cron', hooks=True, check=0, real=True)
        self.assertEqual((done.stdout.count('a'), done.stderr.count('b')), (3000001, 3000000))

    def test_closed_output(self):
        line = self.settled()
        line.hook(CERTCHANGE, 'exec <&- >&- 2>&-')
        line.run('cron', hooks=True, check=0)
        self.silent(hooks=True)

    def test_it_finds_a_pair_that_fits(self):
        line = self.settled(max_key_age_days=90)
        line.hook(CERTCHANGE, 'openssl x509 -in "$LIVE_CRT" -noout -pubkey > %s' % line.path('a')
                  + '\nopenssl pkey -in "$LIVE_KEY" -pubout > %s' % line.path('b'))
        line.age('live', 91)
        line.run('cron', hooks=True, check=0)
        self.assertEqual(len(self.ca.issued), 1)
        self.assertEqual(read(line.path('a')), read(line.path('b')))


class Order(Case):
    def test_certificate_before_keys(self):
        line = self.settled()
        line.hook(CERTCHANGE)
        line.hook(KEYCHANGE)
        done = line.run('cron', hooks=True, check=0)
        self.assertEqual(done.stdout.splitlines(), ['Running ' + CERTCHANGE,
                                                    'Running ' + KEYCHANGE])
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        self.silent(hooks=True)

    def test_a_failure_holds_up_what_comes_after(self):
        """Else a key would leave DNS that services still use."""
        line = self.settled()
        line.hook(CERTCHANGE, 'exit 3')
        line.hook(KEYCHANGE)
        for count in 1, 2:
            done = line.run('cron', hooks=True, check=1)
            self.assertEqual(line.log(), count * [CERTCHANGE])
            self.assertEqual(len(done.stderr.splitlines()), 1)
            for part in CERTCHANGE, line.path(CERTCHANGE), '3', line.config:
                self.assertIn(part, done.stderr)
        line.run('status', check=1)
        line.hook(CERTCHANGE)
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log()[2:], [CERTCHANGE, KEYCHANGE])
        self.silent(hooks=True)

    def test_only_what_changed(self):
        line = self.settled([CERTCHANGE, KEYCHANGE])
        plant(line, self.ca, key='live')
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), [CERTCHANGE])

    def test_staging_time_starts_when_the_hook_is_done(self):
        line = self.settled([CERTCHANGE, KEYCHANGE], staging_hours=48)
        line.hook(KEYCHANGE, 'exit 1')
        line.run('renew', '--new-key', hooks=True, check=1)
        keys = read(line.key()), read(line.key('staging'))

        def at(hours, status):
            self.ca.clock_offset = hours * HOUR
            line.run('cron', hooks=True, now=time.time() + hours * HOUR, check=status)
            return read(line.key()) == keys[1]
        self.assertFalse(at(30, 1))
        line.hook(KEYCHANGE)
        self.assertFalse(at(60, 0))
        self.assertFalse(at(107, 0))
        self.assertTrue(at(109, 0))
        self.assertEqual(line.log()[-2:], [CERTCHANGE, KEYCHANGE])

    def test_no_staging_time_for_a_key_without_certificate(self):
        line = self.settled([CERTCHANGE, KEYCHANGE], staging_hours=48)
        self.ca.fault('order', 'problem', type='rejectedIdentifier', times=None)
        line.run('renew', '--new-key', hooks=True, check=1)
        self.assertTrue(os.path.exists(line.key('staging')))
        self.assertEqual(line.log(), [])
        self.ca.faults.clear()
        line.run('renew', hooks=True, check=0)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])


class Owed(Case):
    """A hook is owed until it has exited 0 for what is on disk now."""

    def test_not_without_k(self):
        line = self.settled([CERTCHANGE])
        for _ in range(2):
            plant(line, self.ca, key='live')
            done = line.run('cron', check=0)
            self.assertIn(CERTCHANGE, done.stdout)
            self.assertIn('-k', done.stdout)
            self.assertEqual(len(done.stdout.splitlines()), 1)
            self.silent()       # said once a change
            self.assertIn(CERTCHANGE, line.run('status', check=1).stdout)
        self.assertEqual(line.log(), [])
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), [CERTCHANGE])
        self.assertEqual(line.run('cron', check=0).stdout, '')
        self.silent()
        self.silent(hooks=True)

    def test_configured_later(self):
        line = self.settled([CERTCHANGE])
        line.hook(KEYCHANGE)
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), [KEYCHANGE])
        self.silent(hooks=True)

    def test_unusable_hook_comes_before_an_order(self):
        line = self.settled([CERTCHANGE, KEYCHANGE])
        plant(line, self.ca, age=65, key='live')
        for name in CERTCHANGE, KEYCHANGE:
            os.chmod(line.path(name), 0o644)
            self.refused('cron', hooks=True, parts=(line.path(name), 'chmod'))
            os.rename(line.path(name), line.path('away'))
            self.refused('cron', hooks=True, parts=(line.path(name),))
            os.rename(line.path('away'), line.path(name))
            os.chmod(line.path(name), 0o755)
        os.chmod(line.path(CERTCHANGE), 0o644)
        line.run('cron', check=0)       # without -k it does not matter yet
        self.assertEqual((len(self.orders()), line.log()), (1, []))

    def test_no_program(self):
        line = self.settled()
        line.hook(CERTCHANGE)
        write(line.path(CERTCHANGE), 'echo no first line\n')
        for _ in range(2):
            self.refused('cron', hooks=True, parts=(CERTCHANGE, line.path(CERTCHANGE)))
        write(line.path(CERTCHANGE), '#!/nonexistent/shell\n')
        self.refused('cron', hooks=True, parts=(CERTCHANGE, line.path(CERTCHANGE)))

    def test_ended_by_a_signal(self):
        line = self.settled()
        line.hook(CERTCHANGE, 'kill -9 $$')
        for _ in range(2):
            self.refused('cron', hooks=True, parts=(CERTCHANGE,))
        self.assertEqual(line.log(), 2 * [CERTCHANGE])

    def test_program_killed_by_its_hook(self):
        """The work was done, but nobody noted it: done again."""
        line = self.settled([CERTCHANGE, KEYCHANGE])
        line.hook(KEYCHANGE, 'kill -9 $PPID')
        line.edit_state(lambda state: state.clear())
        line.run('cron', hooks=True, check=-signal.SIGKILL)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        line.hook(KEYCHANGE, 'kill -15 $PPID; sleep 30')
        line.run('cron', hooks=True, check=128 + signal.SIGTERM)
        line.hook(KEYCHANGE)
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), [CERTCHANGE] + 3 * [KEYCHANGE])
        self.silent(hooks=True)

    def test_renewed_while_a_hook_is_owed(self):
        """A hook that breaks stops neither this renewal nor the next."""
        line = self.settled([CERTCHANGE])
        line.hook(CERTCHANGE, 'exit 1')
        for count in 1, 2:
            plant(line, self.ca, age=65, key='live')
            line.run('cron', hooks=True, check=1)
            self.assertEqual(len(self.ca.issued), count)
            self.good()


class Time(Case):
    def test_timeout_ends_the_hook_and_its_children(self):
        line = self.settled(hook_timeout=0.5)
        line.hook(CERTCHANGE, 'trap "" TERM\nsleep 60 & echo $$ $! > %s\nsleep 60' % (
            line.path('pids')))
        start = time.monotonic()
        self.refused('cron', hooks=True, parts=(CERTCHANGE, '0.5 seconds'))
        self.assertLess(time.monotonic() - start, 20)
        pids = [int(pid) for pid in read(line.path('pids')).split()]
        wait_for(lambda: not any(map(alive, pids)), 10, 'end of the hook')
        line.hook(CERTCHANGE)
        line.run('cron', hooks=True, check=0)
        self.silent(hooks=True)

    def test_a_daemon_holds_up_nothing(self):
        """It keeps running, with our output, while the run ends and the next one works."""
        line = self.settled()
        line.hook(CERTCHANGE, 'sleep 60 & echo $! > %s' % line.path('pid'))
        run = line.start('cron', hooks=True)
        try:
            self.assertEqual(run.wait(20), 0)
            pid = int(read(line.path('pid')))
            self.assertTrue(alive(pid))
            fds = [os.readlink('/proc/%d/fd/%s' % (pid, fd))
                   for fd in os.listdir('/proc/%d/fd' % pid)]
            self.assertNotIn(line.path('keys', 'live.lock'), fds)
            self.silent(hooks=True)
            line.run('renew', check=0)
            self.assertTrue(alive(pid))
        finally:
            os.kill(int(read(line.path('pid'))), signal.SIGKILL)
            run.communicate()

    def test_slow_hook_is_waited_for(self):
        line = self.settled(hook_timeout=30)
        line.hook(CERTCHANGE, 'sleep 0.3; touch ' + line.path('done'))
        line.run('cron', hooks=True, check=0)
        self.assertTrue(os.path.exists(line.path('done')))

    def test_lock_is_held_meanwhile(self):
        line = self.settled()
        line.hook(CERTCHANGE, 'while ! [ -e %s ]; do sleep 0.02; done' % line.path('go'))
        run = line.start('cron', hooks=True)
        wait_for(line.log, 20, 'a hook')
        self.refused('cron', status=75)
        write(line.path('go'), '')
        run.communicate(timeout=30)
        self.assertEqual(run.returncode, 0)

    def test_state_of_long_ago(self):
        """That a hook is done does not wear off."""
        self.settled([CERTCHANGE, KEYCHANGE], max_key_age_days=3650)
        self.silent(hooks=True, now=time.time() + 20 * DAY)


if __name__ == '__main__':
    unittest.main()
