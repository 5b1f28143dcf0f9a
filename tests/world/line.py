"""A certificate line in a temporary directory, with its configuration, its hooks, its web server,
and the program that is run for it, at whatever time."""
import atexit
import calendar
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time

from tests.world.support import PATIENCE, PROGRAM, Web, mode, read, write

HOUR, DAY = 3600, 86400
CERTCHANGE, KEYCHANGE = 'post-certchange', 'post-keychange'

SECTIONS = {
    'timing': ('max-key-age-days', 'staging-hours', 'renew-cert-before-expiry-days'),
    'hooks': ('post-certchange', 'post-keychange', 'hook-timeout'),
    'acme': ('account-key', 'challenge', 'challenge-dir', 'challenge-hook', 'directory-url',
             'ca-bundle', 'contact', 'profile', 'self-check', 'proxy'),
    'dane': ('tlsa', 'dns-resolver', 'dns-servers', 'served'),
    'dirs': ('certs', 'keys', 'backups'),
    'files': ('live', 'staging')}

# Run before the program when a test sets its clock to `now`. What the run writes gets its times
# from that clock too, for a key's age is its file's time.
OTHER_CLOCK = r'''
import os, time
real, start = time.time, time.time()
written = time.clock_gettime(5)     # CLOCK_REALTIME_COARSE: by it the kernel dates files
ahead = now - start
time.time = lambda: real() + ahead
time.time_ns = lambda: int(time.time() * 1e9)
def shifted(name, plain):
    return lambda seconds=None: plain(time.time() if seconds is None else seconds)
for name in 'gmtime', 'localtime':
    setattr(time, name, shifted(name, getattr(time, name)))
def dated(plain):
    def move(source, target, **options):
        # Written in this run, and not under a set clock
        if written <= os.lstat(source).st_mtime <= real():
            os.utime(source, (time.time(), time.time()), follow_symlinks=False)
        return plain(source, target, **options)
    return move
for name in 'replace', 'rename', 'link':
    setattr(os, name, dated(getattr(os, name)))
'''
# Run after that, if it is a process of its own.
PROGRAM_ITSELF = r'''
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
# Starting Python and reading the program is most of a run. So one process does that once and forks
# for each run: it reads jobs (see Nursery.start), and tells of each its process and exit status.
NURSERY = r'''
import json, os, runpy, signal, sys, traceback
import http.client, ssl, subprocess, urllib.request  # which a run may need
main = runpy.run_path(sys.argv[1])["main"]
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        _, how = os.waitpid(pid, 0)
        print(-os.WTERMSIG(how) if os.WIFSIGNALED(how) else os.WEXITSTATUS(how), flush=True)
        continue
    status = 1
    try:
        os.setsid()
        signal.alarm(job["seconds"])
        for fd, path in enumerate((os.devnull, job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR), fd)
        os.environ.clear()
        os.environ.update(job["env"])
        exec(job["code"], {})
        status = main(job["args"])
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)
'''


# ---- the program without its start --------------------------------------------------------------

class Nursery:
    """The process of NURSERY, one for each program under test and process that tests."""
    all = {}

    @classmethod
    def get(cls):
        key = os.getpid(), PROGRAM[-1]
        if key not in cls.all:
            cls.all[key] = cls()
        return cls.all[key]

    def __init__(self):
        self.process = subprocess.Popen(
            [*PROGRAM[:2], '-c', NURSERY, PROGRAM[-1]], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, encoding='ascii', cwd='/')
        atexit.register(self.process.communicate)

    def start(self, args, env, out, err, code='', seconds=PATIENCE):
        """Start a run; its process ID. out, err: paths; code: Python to execute before; seconds:
        after which it is killed."""
        job = dict(args=args, env=env, out=out, err=err, code=code, seconds=seconds)
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """The exit status of what was started."""
        return int(self.process.stdout.readline())

    def run(self, args, env, **options):
        """Run the program; a CompletedProcess (text)."""
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            self.start(args, env, out.name, err.name, **options)
            status = self.wait()
            return subprocess.CompletedProcess(args, status, *(
                file.read().decode('utf-8', 'replace') for file in (out, err)))


# ---- a certificate line -------------------------------------------------------------------------

class Line:
    """A temporary directory with a configuration and, with `web`, a web server for challenges.

    `ca`: the FakeCA to use (its http_port is set to this line's web server), or None.
    `options`: configuration, with '_' for '-'; a list becomes several lines, None leaves a key out.

    What the program remembers is asked through its command line: see status(), failure(), owed(),
    since(). To let time pass, it is run at another time: see run() and staged_for().
    """
    ahead = 0       # by how many seconds this line's time is ahead of ours
    program = PROGRAM       # what start() starts

    def __init__(self, ca=None, web=True, **options):
        self.ca, self.with_web, self.options = ca, web, options

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix='line-')
        self.config = self.path('line.conf')
        os.mkdir(self.path('challenges'))
        self.web = None
        if self.with_web:
            self.web = Web(self.path('challenges')).__enter__()
            if self.ca:
                self.ca.http_port = self.web.port
        # Without a CA, nothing may ever reach a real one: nobody listens on that port.
        defaults = dict(
            domains='example.org', max_key_age_days=365, account_key=self.path('account.key'),
            challenge_dir=self.path('challenges'), certs=self.path('certs'),
            keys=self.path('keys'), backups=self.path('backups'), self_check='no',
            directory_url=self.ca.directory_url if self.ca else 'https://127.0.0.1:1/directory',
            ca_bundle=self.ca.bundle if self.ca else None)
        self.options = dict(defaults, **self.options)
        self.set()
        return self

    def __exit__(self, *exception):
        if self.web:
            self.web.__exit__()
        self.folder.cleanup()

    # -- the configuration

    def set(self, **options):
        """Change keys of the configuration (None: leave the key out) and write it."""
        self.options.update(options)
        lines, left = {name: [] for name in ['top', *SECTIONS]}, dict(self.options)
        for key, value in left.items():
            key = key.replace('_', '-')
            section = next((name for name in SECTIONS if key in SECTIONS[name]), 'top')
            if isinstance(value, (list, tuple)):
                value = '\n  ' + '\n  '.join(value)
            if value is not None:
                lines[section].append('%s = %s\n' % (key, value))
        with open(self.config, 'w', encoding='utf-8') as file:
            for section, text in lines.items():
                if text and section != 'top':
                    file.write('\n[%s]\n' % section)
                file.writelines(text)

    def hook(self, name, body='', keys=False):
        """Configure a hook `name` ('post-certchange', 'post-keychange') that notes its call
        (see calls()), with the digests of the public keys that it finds if `keys` is set, and then
        runs the shell commands `body`."""
        write(self.path(name), HOOK.format(log=self.path('hooks.log'), body=body,
                                           spki=SPKI if keys else 'spki() { :; }'), 0o755)
        self.set(**{name.replace('-', '_'): self.path(name)})

    def calls(self):
        """Calls of the hooks, oldest first: list of dicts of CALL's names."""
        try:
            with open(self.path('hooks.log')) as file:
                return [dict(zip(CALL, line.rstrip('\n').split('\t'))) for line in file]
        except FileNotFoundError:
            return []

    def log(self):
        """Names of the hooks that ran, oldest first."""
        return [call['HOOK'] for call in self.calls()]

    def forget_calls(self):
        """Begin log() and calls() anew."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path('hooks.log'))

    # -- its files

    def path(self, *parts):
        return os.path.join(self.folder.name, *parts)

    def key(self, name='live'):
        return self.path('keys', name + '.key')

    def crt(self, name='live'):
        return self.path('certs', name + '.crt')

    def state_file(self):
        """Path of the state file, whose content is the program's own business."""
        return self.path('certs', self.options.get('live', 'live') + '.state')

    def lose_state(self):
        """Remove the state file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.state_file())

    def notes_challenges(self):
        """Does the state file name any challenge file, as one to be removed?"""
        return os.path.exists(self.state_file()) and (
            self.options['challenge_dir'].encode() in read(self.state_file()))

    def age(self, name, days):
        """Make the key `name` `days` old."""
        then = self.time() - days * DAY
        os.utime(self.key(name), (then, then))

    def snapshot(self):
        """All files below: dict of relative path -> (mode, SHA-256 of the content)."""
        found = {}
        for folder, _, names in os.walk(self.folder.name):
            for path in (os.path.join(folder, name) for name in names):
                digest = hashlib.sha256(read(path)).hexdigest()
                found[os.path.relpath(path, self.folder.name)] = mode(path), digest
        return found

    # -- the program

    def time(self, after=0):
        """What time it is for this line `after` seconds from now: seconds since 1970."""
        return time.time() + self.ahead + after

    def words(self, args, hooks):
        """The program's arguments."""
        return ['-c', self.config, *(['-k'] if hooks else []), *args]

    def environment(self, env):
        return dict({'PATH': os.environ['PATH'], 'HOME': self.folder.name, 'LANG': 'C'},
                    **(env or {}))

    def set_clocks(self, now, after, skew):
        """See run(): Python to execute first."""
        if after is not None:
            now = self.time(after)
            if self.ca:
                self.ca.clock_offset = now + skew - time.time()
        return '' if now is None else 'now = %r\n%s' % (float(now), OTHER_CLOCK)

    def start(self, *args, hooks=False, env=None, now=None, after=None, skew=0, code=''):
        """Start the program as run() does, but for good; return its Popen, leader of a session of
        its own."""
        command, code = self.program, self.set_clocks(now, after, skew) + code
        if code:
            command = command[:2] + ['-c', code + PROGRAM_ITSELF, command[-1]]
        return subprocess.Popen(
            command + self.words(args, hooks), env=self.environment(env), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding='utf-8', errors='replace',
            start_new_session=True)

    def run(self, *args, check=None, timeout=PATIENCE, real=False, hooks=False, env=None, now=None,
            after=None, skew=0, code=''):
        """Run the program with this configuration and `args`; return a CompletedProcess (text).

        check       the exit status that is demanded
        timeout     seconds, then it and all its children are killed
        real        start it as its users do, and do not fork it (see Nursery)
        hooks       with -k
        env         more environment
        now         what its clock shows at the start, in seconds since 1970
        after       or: by how many seconds its clock and the CA's are ahead of now (the CA's stays
                    so), and skew, by how many the CA's is more so
        code        Python to execute before
        """
        if not real:
            code = self.set_clocks(now, after, skew) + code
            return demand(Nursery.get().run(self.words(args, hooks), self.environment(env),
                                            seconds=timeout, code=code), check)
        process = self.start(*args, hooks=hooks, env=env, now=now, after=after, skew=skew,
                             code=code)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return demand(subprocess.CompletedProcess(args, process.returncode, out, err), check)

    def staged_for(self, hours):
        """Let a new key be staged, published (by post-keychange, if there is one) and certified as
        if that had been so many hours ago, on a line that is at least as old."""
        self.run('renew', '--new-key', hooks=True, check=0, after=-hours * HOUR)
        self.set_clocks(None, 0, 0)

    # -- what `status` tells

    def status(self, *args, **options):
        """What `status` tells of this line (str), and of those of more configurations in args."""
        return self.run('status', *args, **options).stdout

    def failure(self, said=None, **options):
        """(reason, earliest time of the next request in seconds since 1970, a whole minute) of the
        last failed request; None if there is none. said: by `status` of several lines."""
        said = said or self.status(**options)
        block = re.search(r'^%s: .*\n(?:  .*\n)*' % re.escape(self.config), said, re.M)
        if not block:
            raise AssertionError('status tells nothing of %s: %s' % (self.config, said))
        found = re.search('^ *last failure: (.*); next request from (.* UTC)$', block.group(), re.M)
        return found and (found.group(1), seconds_of(found.group(2)))

    def owed(self, **options):
        """Names of the hooks that are owed."""
        found = re.search('^ *hooks owed: (.*)$', self.status(**options), re.M)
        return found.group(1).split(', ') if found else []

    def since(self, what, **options):
        """Since when (seconds since 1970, a whole minute) the staged key is 'published', or 'seen
        in DNS'; None if it is not."""
        found = re.search('^ *.* is %s since (.* UTC)$' % what, self.status(**options), re.M)
        return found and seconds_of(found.group(1))


def seconds_of(text):
    """Seconds since 1970 of a time as the program tells it."""
    return calendar.timegm(time.strptime(text, '%Y-%m-%d %H:%M UTC'))


def demand(done, check):
    """A CompletedProcess; AssertionError if `check` is another exit status, not None."""
    if check not in (None, done.returncode):
        raise AssertionError('%s: exit status %s instead of %s\n--- stdout\n%s--- stderr\n%s' % (
            ' '.join(done.args), done.returncode, check, done.stdout, done.stderr))
    return done


# What a hook notes of each call, and the public keys (SHA-256, hex) that it finds in the files.
CALL = ('HOOK', 'CONFIG', 'DOMAINS', 'LIVE_CRT', 'LIVE_KEY', 'STAGING_CRT', 'STAGING_KEY',
        'LIVE_SPKI', 'STAGING_SPKI')
SPKI = r'''spki() {
    [ -z "$1" ] || openssl pkey -in "$1" -pubout -outform DER | openssl dgst -sha256 -r | cut -c-64
}'''
HOOK = r'''#!/bin/sh
{spki}
printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$HOOK" "$CONFIG" "$DOMAINS" "$LIVE_CRT" \
    "$LIVE_KEY" "$STAGING_CRT" "$STAGING_KEY" "$(spki "$LIVE_KEY")" "$(spki "$STAGING_KEY")" \
    >> '{log}'
{body}
'''
