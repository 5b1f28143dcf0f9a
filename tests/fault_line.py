"""What the tests of faults have in common: lines just before something happens to them, and what
must hold right after a fault and in the end."""
import base64
import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from unittest import mock

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests import fake_ca, support
from tests.support import other_file_system

DAY = 86400
FAULTS = {'ENOSPC': 'No space left on device', 'EROFS': 'Read-only file system',
          'EIO': 'Input/output error', 'EDQUOT': 'Disk quota exceeded'}
# Notes what services and DNS would now be given, and does what the test wants besides.
HOOK = r'''#!/bin/sh
echo "$HOOK" $(openssl dgst -sha256 -r "$LIVE_CRT" "$LIVE_KEY" ${{STAGING_KEY:+"$STAGING_KEY"}} |
    cut -c-64) >> '{log}'
if [ -e '{log}'."$HOOK" ]; then
    . '{log}'."$HOOK"
fi
'''
# Loads the program once and then runs it again and again, each time in a process of its own: most
# of a run is its start. A gate is a file that the run waits for to vanish.
STARTER = r'''
import ctypes, json, os, runpy, signal, sys, time, traceback
import http.client, ssl, subprocess, urllib.request
main = runpy.run_path(sys.argv[1])["main"]
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        how = os.waitpid(pid, 0)[1]
        print(-os.WTERMSIG(how) if os.WIFSIGNALED(how) else os.WEXITSTATUS(how), flush=True)
        continue
    status = 1
    try:
        os.setsid()
        signal.alarm(100)
        for fd, path in enumerate((os.devnull, job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR), fd)
        os.environ.clear()
        os.environ.update(job["env"])
        ctypes.CDLL(None).prctl(0x59616d61, -1)     # PR_SET_PTRACER: whoever wants to
        while job["gate"] and os.access(job["gate"], os.F_OK):
            time.sleep(0.001)
        exec(job["code"])
        status = main(job["args"])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)
'''
TOKEN = base64.urlsafe_b64encode(b'a token for every test of faults').decode().rstrip('=')


class CA(fake_ca.FakeCA):
    """A CA whose first challenge after `forget()` is always the same, so that a run can be
    repeated call by call. How it checks signatures is not what is tested here: it takes any."""

    def __init__(self, **options):
        super().__init__(**options)
        self.challenges = 0
        self.lenient = mock.patch.object(fake_ca, 'jws_signature_fits', lambda *parts: True)

    def start(self):
        self.lenient.start()
        return super().start()

    def stop(self):
        super().stop()
        self.lenient.stop()

    def forget(self):
        self.challenges = 0

    def add(self, kind, **members):
        if members.get('type') == 'http-01':
            self.challenges += 1
            members['token'] = TOKEN if self.challenges == 1 else '%s-%d' % (TOKEN,
                                                                            self.challenges)
        return super().add(kind, **members)


# ---- the scenarios ------------------------------------------------------------------------------

# args: what the program is called with; options: of the configuration; prepare(case): makes the
# line as it is before; staged: whether a staged key may be (None), or must not be there in the end
# (False); only: faults only at calls whose label has this, for all else is in another scenario
Scenario = collections.namedtuple('Scenario', 'name args options prepare staged only')


def nothing(case):
    """A configuration and no more."""
    shutil.rmtree(case.line.path('challenges'))


def settled(case):
    """A line with nothing to do."""
    case.run('init', check=0)


def ready(case):
    """A staged pair that has been published for longer than it must."""
    settled(case)
    case.run('renew', '--new-key', check=0)
    case.line.edit_state(lambda state: state.update(published=time.time() - 2 * DAY))


def stateless(case):
    """A line whose state file got lost: hooks are owed."""
    settled(case)
    os.unlink(case.line.path('certs', 'live.state'))


def admin_modes(case):
    """A line whose keys the administrator has given to a group."""
    settled(case)
    os.chmod(case.line.key(), 0o640)
    if not os.geteuid():
        os.chown(case.line.key(), -1, 4321)


def year_2017(case):
    """What the program of 2017 left: keys that all can read, a certificate without its chain, a
    staged key without certificate, no state."""
    stateless(case)
    os.unlink(case.line.path('keys', 'live.lock'))
    support.openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256',
                    '-out', case.line.key('staging'))
    for key in (case.line.key(), case.line.key('staging'), case.line.path('account.key')):
        os.chmod(key, 0o644)
    with open(case.line.crt()) as file:
        leaf = file.read().partition('-----END CERTIFICATE-----\n')
    with open(case.line.crt(), 'w') as file:
        file.write(leaf[0] + leaf[1])
    with open(case.line.path('certs', 'live.csr.tmp'), 'w') as file:
        file.write('-----BEGIN CERTIFICATE REQUEST-----\n')


def half_unstaged(case):
    """A line of which a run died between the two renames that make a staged pair live."""
    ready(case)
    shutil.copy2(case.line.key(), case.line.path('backups', 'live.key.20260101-000000'))
    shutil.copy2(case.line.crt(), case.line.path('backups', 'live.crt.20260101-000000'))
    os.rename(case.line.key('staging'), case.line.key())


def power_cut(case):
    """A line of which the power was cut when only the second of the two renames was on disk."""
    ready(case)
    shutil.copy2(case.line.key(), case.line.path('backups', 'live.key.20260101-000000'))
    shutil.copy2(case.line.crt(), case.line.path('backups', 'live.crt.20260101-000000'))
    os.rename(case.line.crt('staging'), case.line.crt())


def half_dropped(case):
    """A line with a staged key that is live, and a certificate that has no key any more."""
    ready(case)
    shutil.copy2(case.line.key(), case.line.key('staging'))


SCENARIOS = {row[0]: Scenario(*row) for row in (
    ('init', ('init',), {}, nothing, None, ''),
    ('at-once', ('renew', '--new-key'), {'staging_hours': 0}, admin_modes, False, ''),
    ('rollover', ('renew', '--new-key'), {}, settled, None, ''),
    ('2017', ('cron',), {}, year_2017, None, ''),
    ('renew', ('renew',), {}, settled, None, ''),
    ('unstage', ('cron',), {}, ready, False, ''),
    ('state', ('cron',), {}, stateless, None, ''),
    ('half-unstaged', ('cron',), {}, half_unstaged, False, ''),
    ('power-cut', ('cron',), {}, power_cut, False, ''),
    ('half-dropped', ('cron',), {}, half_dropped, False, ''),
    ('far-renew', ('renew',), {'backups': None}, settled, None, 'far/'),
    ('far-unstage', ('cron',), {'backups': None}, ready, False, 'far/'))}


# ---- files --------------------------------------------------------------------------------------

def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read(path):
    """The bytes of a file; None if there is none."""
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        return None


def private(data):
    return b'PRIVATE KEY-----' in data


public = {}     # SHA-256 of a file's content -> the public key in it, None if it is not whole


def public_key(data):
    """openssl's word on a key or chain (bytes): SHA-256 of its public key, None if it is broken."""
    name = sha256(data)
    if name not in public:
        args = ['openssl', 'pkey', '-pubout'] if private(data) else [
            'openssl', 'x509', '-noout', '-pubkey']
        done = subprocess.run(args, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        whole = data.endswith(b'-----\n') and data.count(b'-----BEGIN') == data.count(b'-----END')
        public[name] = None if done.returncode or not whole else sha256(base64.b64decode(
            b''.join(done.stdout.splitlines()[1:-1])))
    return public[name]


class Case:
    """A line, made as it is before a scenario, to which that can be done again and again."""

    def __init__(self, scenario, ca):
        self.scenario, self.ca = scenario, ca
        self.settled_shapes = set()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.make(stack)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self.stack.__exit__(*exception)

    def make(self, stack):
        """Make the line; `stack`: where to leave what ends with it."""
        def folder(prefix, where=None):
            path = tempfile.mkdtemp(prefix=prefix, dir=where)
            stack.callback(shutil.rmtree, path)
            return path

        self.line = stack.enter_context(support.Line(self.ca, **dict(
            {'staging_hours': 24}, **self.scenario.options)))
        self.roots, self.store = [self.line.folder.name], folder('store-')
        if 'backups' in self.scenario.options:
            self.roots.append(folder('far-', other_file_system(self.roots[0])))
            self.line.set(backups=os.path.join(self.roots[1], 'backups'))
        self.backups, self.log = self.line.options['backups'], self.line.path('hooks.log')
        hook = self.line.path('hook')
        with open(hook, 'w') as file:
            file.write(HOOK.format(log=self.log))
        os.chmod(hook, 0o755)
        self.line.set(post_certchange=hook, post_keychange=hook)
        self.starter = stack.enter_context(subprocess.Popen(
            [*support.PROGRAM[:2], '-c', STARTER, support.PROGRAM[2]], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, encoding='utf-8'))
        stack.callback(self.starter.stdin.close)    # at which it ends
        self.scenario.prepare(self)
        for number, root in enumerate(self.roots):
            shutil.copytree(root, os.path.join(self.store, str(number)), symlinks=True)
        self.before = self.files()
        self.modes = {sha256(data): mode for mode, data in self.before.values()}
        # What an administrator gave a key, its successors may have too
        self.wide = self.before[self.line.key()][0] if self.scenario.prepare is admin_modes else 0
        self.calls = len(self.hook_calls())
        self.planted = {path for path in self.before if path.endswith('.tmp')}

    def restore(self):
        """Make everything as it was before."""
        for number, root in enumerate(self.roots):
            for name in os.listdir(root):
                path = os.path.join(root, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            stored = os.path.join(self.store, str(number))
            subprocess.run(['cp', '-a', stored + '/.', root], check=True)
        self.ca.forget()

    def run(self, *args, prefix=None, strace=None, code='', check=None):
        """Run the program with -k; return a CompletedProcess (text). prefix: start it anew, under
        this command; strace: a strace command to trace it with; code: Python to execute first."""
        args = ['-k', '-c', self.line.config, *args]
        env = {'PATH': os.environ['PATH'], 'HOME': self.line.folder.name, 'LANG': 'C'}
        files = [os.path.join(self.store, name) for name in ('out', 'err', 'gate')]
        for file in files:
            open(file, 'w').close()
        with open(files[0], 'w') as out, open(files[1], 'w') as err:
            if prefix is not None:
                status = subprocess.call([*prefix, *support.PROGRAM, *args], env=env, stdout=out,
                                         stderr=err, stdin=subprocess.DEVNULL, timeout=120)
            else:
                status = self.start({'args': args, 'env': env, 'code': code, 'out': out.name,
                                     'err': err.name, 'gate': strace and files[2]}, strace)
        texts = (read(file).decode('utf-8', 'replace') for file in files[:2])
        done = subprocess.CompletedProcess(args, status, *texts)
        if check is not None and done.returncode != check:
            raise AssertionError('%s: exit status %d\n%s%s' % (
                ' '.join(args), done.returncode, done.stdout, done.stderr))
        return done

    def start(self, job, strace):
        """Give the starter a job; return the exit status."""
        print(json.dumps(job), file=self.starter.stdin, flush=True)
        pid = self.starter.stdout.readline().strip()
        if strace:
            tracer = subprocess.Popen([*strace, '-P', job['gate'], '-p', pid])
            log = strace[strace.index('-o') + 1]
            # What the trace begins with is the look at the gate: from here on it misses nothing.
            support.wait_for(lambda: b'access' in (read(log) or b''), 60, 'strace')
            os.unlink(job['gate'])
        status = int(self.starter.stdout.readline())
        if strace:
            tracer.wait()
        return status

    # -- what is there

    def short(self, text):
        """A text with paths of the line made short, and times and random parts left out."""
        for number, root in enumerate(self.roots):
            text = text.replace(root + '/', 'far/' if number else '').replace(
                root, 'far' if number else '.')
        return re.sub(r'\d{8}-\d{6}(-\d+)?', 'TIME', text.replace(TOKEN, 'TOKEN'))

    def files(self):
        """All files: dict of path -> (mode, content); instead of it a link's target, and nothing
        of what is no file."""
        found = {}
        for root in self.roots:
            for folder, _, names in os.walk(root):
                for path in (os.path.join(folder, name) for name in names):
                    info = os.lstat(path)
                    found[path] = info.st_mode & 0o7777, (
                        os.readlink(path).encode() if stat.S_ISLNK(info.st_mode) else
                        read(path) if stat.S_ISREG(info.st_mode) else b'')
        return found

    def in_hook(self, hook, body):
        """Have the shell run the commands `body` at the end of a hook, until restore()."""
        with open('%s.%s' % (self.log, hook), 'w') as file:
            file.write(body)

    def hook_calls(self):
        """Calls of the hooks as lists: hook, digest of live.crt, live.key, perhaps staging.key."""
        return [line.split() for line in (read(self.log) or b'').decode().splitlines()]

    def shape(self):
        """What decides how the next runs go: files, modes and contents, as far as they are not
        random. Two faults that leave the same shape need not both be followed to their end."""
        files, names = self.files(), {}
        for path, (_, data) in sorted(self.before.items()):
            names.setdefault(sha256(data), 'old ' + self.short(path))
        keys = {}
        for _, (_, data) in sorted(files.items()):
            if (private(data) or b'BEGIN CERT' in data) and public_key(data):
                keys.setdefault(public_key(data), 'key %d' % len(keys))
        live = sha256(files.get(self.line.crt(), (0, b''))[1])
        shape = []
        for path, (mode, data) in sorted(files.items()):
            if path.startswith(self.log):
                continue
            what = names.get(sha256(data)) or keys.get(public.get(sha256(data))) or len(data) > 0
            if path.endswith('live.state') and what is True:
                state = json.loads(data.decode())
                retry = state.get('retry') or {}
                what = (sorted(state), retry.get('count'), retry.get('after', 0) > time.time(),
                        state.get('certchange') == live,
                        [keys.get(digest) for digest in state.get('keychange', [])])
            shape.append((self.short(path), mode, what))
        return repr(shape)

    # -- what must hold

    def right_after(self, point=''):
        """What is wrong (list of str) at the moment of a fault, which may have been anywhere."""
        wrong, files = [], self.files()
        for path in (self.line.key(), self.line.crt(), self.line.path('account.key'),
                     self.line.path('certs', 'live.state')):
            if path in self.before and path not in files:
                wrong.append('%s is gone' % self.short(path))
        for path in self.line.key(), self.line.crt():
            if path in files and not public_key(files[path][1]):
                wrong.append('%s is not whole' % self.short(path))
        wrong += self.state_problems(files) + self.lost(files) + self.modes_problems(files)
        # Only between the two renames of a staged pair may the live files not fit
        pair = [files[path][1] for path in (self.line.key(), self.line.crt()) if path in files]
        old = [self.before[path][1] for path in (self.line.key(), self.line.crt())
               if path in self.before]
        if len(pair) == 2 and public_key(pair[0]) != public_key(pair[1]) and not re.search(
                r'rename\w* certs/staging.crt', point) and (
                public_key(old[0]) == public_key(old[1])):
            wrong.append('live.key and live.crt do not fit')
        return wrong

    def state_problems(self, files):
        path = self.line.path('certs', 'live.state')
        mode, data = files.get(path, (0o644, b'{}'))
        try:
            json.loads(data.decode())
        except ValueError:
            return ['live.state is not whole']
        return [] if mode == 0o644 else ['live.state has mode %o' % mode]

    def modes_problems(self, files, final=False):
        """Files with private keys that more can read than before, or than should."""
        wrong = []
        for path, (mode, data) in files.items():
            allowed = 0o600 | self.wide | (0 if final else self.modes.get(sha256(data), 0))
            if private(data) and mode & ~allowed:
                wrong.append('%s has mode %o' % (self.short(path), mode))
        return wrong

    def lost(self, files):
        """Keys and certificates that were live, before or when a hook ran, and are nowhere; and
        a published key that is lost."""
        wrong, kept = [], {sha256(data) for path, (_, data) in files.items()
                           if path in (self.line.key(), self.line.crt())
                           or os.path.dirname(path) == self.backups}
        ever = {sha256(self.before[path][1]): self.short(path) for path in (
            self.line.key(), self.line.crt()) if path in self.before}
        for call in self.hook_calls()[self.calls:]:
            ever.update({call[1]: 'a live.crt of a hook', call[2]: 'a live.key of a hook'})
        wrong += ['%s is lost' % name for digest, name in ever.items() if digest not in kept]
        staged = self.before.get(self.line.key('staging'))
        if staged and sha256(staged[1]) not in kept | {
                sha256(files.get(self.line.key('staging'), (0, b''))[1])}:
            wrong.append('the staged key is lost')
        for path, (_, data) in files.items():
            if os.path.dirname(path) == self.backups and not path.endswith('.tmp') and (
                    not public_key(data)):
                wrong.append('%s is not whole' % self.short(path))
        return wrong

    def leftovers(self):
        """Temporary and challenge files that are there."""
        return ['%s is left' % self.short(path) for path in self.files() if path.endswith('.tmp')
                and path not in self.planted or '/challenges/' in path]

    def settle(self, remember=False):
        """Run cron as often as it may need; what is wrong (list of str) then. remember: a shape
        that was seen to settle need not be tried again."""
        shape = self.shape() if remember else None
        if shape in self.settled_shapes:
            return []
        self.ca.forget()
        wrong, orders = [], len(self.ca.orders)
        first = [self.run('init')] if self.scenario.name == 'init' else []
        runs = first + [self.run('cron')]
        while len(runs) < len(first) + 3 and (runs[-1].returncode or runs[-1].stdout
                                              or runs[-1].stderr):
            runs.append(self.run('cron'))
        wrong += ['clean run %d: exit status %d: %s' % (
            number, done.returncode, self.short(done.stderr.strip()))
            for number, done in enumerate(runs, 1) if done.returncode or done.stderr]
        if runs[-1].stdout:
            wrong.append('does not settle in two runs, the third: %s' % self.short(
                runs[-1].stdout.strip()))
        if len(self.ca.orders) - orders > 2:
            wrong.append('%d orders' % (len(self.ca.orders) - orders))
        wrong += self.in_the_end()
        if not wrong:
            self.settled_shapes.add(shape or self.shape())
        return wrong

    def in_the_end(self):
        """What is wrong (list of str) once the line has settled."""
        files, line = self.files(), self.line
        wrong = self.state_problems(files) + self.lost(files) + self.leftovers()
        wrong += self.modes_problems(files, True)
        pair, staged = ([files[path][1] if path in files else None for path in (
            line.key(name), line.crt(name))] for name in ('live', 'staging'))
        if None in pair or public_key(pair[0]) is None or public_key(pair[0]) != public_key(
                pair[1]):
            return wrong + ['no live pair']
        if staged != [None, None]:
            if self.scenario.staged is False:
                wrong.append('there is still a staged pair')
            if None in staged or public_key(staged[0]) != public_key(staged[1]):
                wrong.append('half a staged pair')
        if files[line.crt()][0] != 0o644:
            wrong.append('live.crt has mode %o' % files[line.crt()][0])
        if self.wide and files[line.key()][0] != self.wide:
            wrong.append('live.key has mode %o' % files[line.key()][0])
        return wrong + self.hook_problems([sha256(data) for data in pair],
                                          staged[0] and sha256(staged[0]))

    def hook_problems(self, live, staged):
        """Hooks that were not run for the present files, or in the wrong order."""
        wrong, state, calls = [], self.line.state(), self.hook_calls()
        last = {call[0]: call[1:] for call in calls}
        if last.get('post-certchange', ())[:2] != [live[1], live[0]]:
            wrong.append('post-certchange was not run for the present files')
        if last.get('post-keychange', ())[1:] != [live[0]] + ([staged] if staged else []):
            wrong.append('post-keychange was not run for the present keys')
        served = None   # the key that services use: that of the last post-certchange
        for call in calls:
            served = call[2] if call[0] == 'post-certchange' else served
            if call[0] == 'post-keychange' and served not in call[2:]:
                wrong.append('post-keychange dropped a key that services use')
        if state.get('certchange') != live[1] or 'keychange' not in state:
            wrong.append('the state does not know that the hooks ran')
        wrong += ['the state still holds %s' % name for name in ('challenges', 'retry')
                  if name in state]
        return wrong

    # -- verdict on an error

    def after_error(self, point, name, done):
        """What is wrong (list of str) after a run in which the call `point` failed with the error
        `name`; `done`: the run as a CompletedProcess."""
        wrong, lines = self.right_after(point), done.stderr.splitlines()
        if 'Traceback' in done.stderr:
            return wrong + ['traceback: %s' % lines[-1]]
        said = [line for line in lines if FAULTS[name] in line]
        # What cannot be removed is only said; what cannot be linked is copied; a state that cannot
        # be read is as good as lost.
        removal = re.match(r'(unlink\w*) .*(\.tmp|TOKEN)', point)
        spare = re.match(r'link\w* .*backups/|(fsync|openat) \S*backups$|\w+ \S*live.state$', point)
        if done.returncode not in (0, 1) or done.returncode == 0 and not removal and not spare:
            wrong.append('exit status %d, stderr: %s' % (
                done.returncode, self.short(done.stderr.strip())))
        if len(lines) > 1 or not (lines or spare and not done.returncode):
            wrong.append('%d lines on stderr: %s' % (len(lines), self.short(done.stderr.strip())))
        elif lines and (not said or not lines[0].startswith('letsencrypt-tiny: ')):
            wrong.append('unclear: %s' % self.short(lines[0]))
        if not removal:
            wrong += self.leftovers()
        if done.returncode == 0 and not removal:
            wrong += self.in_the_end()
        return wrong

