"""Watches which system calls see a private key, and what the web server's user can do with the
challenge folder."""
import base64
import os
import re
import sys
import tempfile
import threading
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests.fault_line import SCENARIOS, TOKEN, Case, private, read
from tests.fault_trace import calls_in, only, paths_of, strings

CALLS = ('execve execveat open openat openat2 creat write pwrite64 writev pwritev pwritev2 sendto'
         ' sendmsg sendmmsg fchmod chmod fchmodat fchmodat2 fchown chown lchown fchownat mkdir'
         ' mkdirat rename renameat renameat2 link linkat symlink symlinkat prlimit64 setrlimit'
         ' truncate ftruncate prctl').split()
WATCHED = 'init', 'renew', 'rollover', 'at-once', 'far-unstage', '2017'
# Run by the hooks: what they got from the program besides their files
LOOK = r'''
{{
    ulimit -S -c
    for fd in /proc/$$/fd/*; do readlink "$fd"; done
    env
}} > '{log}'.seen
'''


def secrets_of(files):
    """Pieces (list of bytes) of all private keys in files (as Case.files() has them) that nobody
    else's data holds: of the text, and the secret number itself in bytes and digits."""
    found = []
    for _, data in files.values():
        if not private(data):
            continue
        body = b''.join(data.split(b'-----')[2].split())
        der = base64.b64decode(body)
        # The private number of a P-256 key in PKCS#8 (RFC 5958, RFC 5915)
        secret = der[36:68]
        text = data.split(b'-----')[2].split()
        found += [secret, secret.hex().encode(), secret.hex().upper().encode(), text[0][-14:],
                  text[1][:24], base64.b64encode(secret)[:40]]
    return found


def holds(blobs, secrets):
    return any(secret in blob for blob in blobs for secret in secrets)


class Watch:
    """One run of a scenario with all calls that matter in a trace."""

    def __init__(self, case):
        self.case = case
        case.restore()
        for hook in 'post-certchange', 'post-keychange':
            case.in_hook(hook, LOOK.format(log=case.log))
        with tempfile.TemporaryDirectory(prefix='trace-') as folder:
            log = os.path.join(folder, 'log')
            # As on a machine where programs may leave a small core
            self.done = case.run(*case.scenario.args, prefix=[
                'sh', '-c', 'ulimit -S -c 1234 && exec "$@"', 'sh', 'strace', '-qq', '-f',
                '--seccomp-bpf', '-y', '-v', '-s', '1000000', '-o', log, *only(CALLS)])
            self.calls = calls_in(log)
        self.files = case.files()
        self.secrets = secrets_of(dict(self.files, **{
            'before ' + path: value for path, value in case.before.items()}))
        self.main = self.calls[0].pid
        self.keys = sorted({path for path, (_, data) in self.files.items() if private(data)})

    def all_wrong(self):
        """Names of the checks and what each found (dict of str -> list of str)."""
        return {'the run': [] if self.done.returncode == 0 else [self.done.stderr],
                'keys are only written to files of ours': self.written(),
                'no key on a command line, in the environment or in what is printed': self.told(),
                'no shell': [self.short(call) for call in self.calls if call.name == 'execve'
                             and re.match(rb'(/.*)?/(da|ba|)sh\Z', strings(call)[0])
                             and b'-c' in strings(call)[1:3]],
                'modes': self.modes(), 'no core': self.cores(), 'hooks': self.hooks()}

    def short(self, call):
        return self.case.short('%s(%s) = %s' % (call.name, call.args[:200], call.result[:80]))

    def written(self):
        """Writes of private keys to what is no file that was made for it alone."""
        wrong, seen = [], 0
        for number, call in enumerate(self.calls):
            if not re.match('p?write|send', call.name) or not holds(strings(call), self.secrets):
                continue
            seen += 1
            path = (paths_of(call) or [None])[0]
            if path is None:
                if not re.match(r'\d+<pipe:', call.args):
                    wrong.append('sent elsewhere: ' + self.short(call))
                continue
            made = [other for other in self.calls[:number] if other.pid == call.pid
                    and other.name.startswith('open') and path in paths_of(other)][-1:]
            if not made or not re.search(r'O_CREAT.*O_EXCL.*, 0600\Z|O_EXCL.*O_CREAT.*, 0600\Z',
                                         made[0].args):
                wrong.append('not made 0600 and anew: %s' % (made or [call])[0].args[:200])
        # openssl must at least have handed over the keys that the scenario makes
        if self.case.scenario.name in ('init', 'rollover', 'at-once', '2017') and not seen:
            if any(path not in self.case.before for path in self.keys):
                wrong.append('the trace does not show how keys are written')
        return wrong

    def told(self):
        wrong = [self.short(call) for call in self.calls if call.name.startswith('execve')
                 and holds(strings(call), self.secrets)]
        printed = (self.done.stdout + self.done.stderr).encode()
        noted = (read(self.case.log + '.seen') or b'') + (read(self.case.log) or b'')
        state = read(self.case.line.path('certs', 'live.state')) or b''
        if holds([printed, noted, state], self.secrets) or b'PRIVATE KEY' in printed + state:
            wrong.append('a key is in what was printed or noted')
        return wrong

    def modes(self):
        """Changes of mode that let more read a key than its predecessor; keys that end so."""
        wrong = self.case.modes_problems(self.files, True)
        for call in self.calls:
            match = re.search(r'(?:\A|, )(0\d+)(?:,|\Z)', call.args)
            path = (paths_of(call) or [''])[0]
            if 'chmod' in call.name and match and re.search(r'\.key(\.tmp|\.\d|\Z)', path) and (
                    int(match.group(1), 8) & ~(0o600 | self.case.wide)):
                wrong.append(self.short(call))
        return wrong

    def cores(self):
        """Keys that are opened while a core may be written."""
        wrong, off = [], False
        for call in self.calls:
            if call.pid != self.main:
                continue
            if 'rlimit' in call.name and 'RLIMIT_CORE, {' in call.args:
                if off and 'rlim_cur=0' not in call.args:
                    wrong.append('switched on again: ' + self.short(call))
                off = 'rlim_cur=0' in call.args
            if call.name.startswith('open') and not off and any(
                    re.search(r'\.key(\.tmp)?\Z', path) for path in paths_of(call)):
                wrong.append('still on: ' + self.short(call))
        return wrong

    def hooks(self):
        """What hooks inherit that they should not, or lack."""
        seen = read(self.case.log + '.seen')
        if seen is None:
            return [] if not self.case.hook_calls()[self.case.calls:] else ['not seen']
        core, *lines = seen.decode().splitlines()
        wrong = [] if core == '1234' else [
            'they get a core limit of %s instead of the 1234 before' % core]
        ours = tuple(self.case.roots)
        wrong += ['they inherit %s' % self.case.short(line) for line in lines
                  if line.startswith(('socket:', 'anon_inode:')) or line.startswith(ours)
                  and line not in (self.case.log + '.seen', self.case.line.path('hook'))
                  and not line.startswith(self.case.log + '.post-')]
        return wrong


# ---- the challenge folder -----------------------------------------------------------------------

def plant_link(path, victim):
    os.symlink(victim, path)


def plant_hard_link(path, victim):
    os.link(victim, path)


def plant_dangling(path, victim):
    os.symlink(victim + '-new', path)


def plant_folder_link(path, victim):
    os.symlink(os.path.dirname(victim), path)


def plant_fifo(path, victim):
    os.mkfifo(path)


def plant_folder(path, victim):
    os.mkdir(path)


PLANTS = plant_link, plant_hard_link, plant_dangling, plant_folder_link, plant_fifo, plant_folder


def planted(case, plant, name, race):
    """What is wrong (list of str) when something is planted in the challenge folder before the
    run, or, in a race, again between the removal of a left-over and the creation of the file."""
    case.restore()
    victim, path = case.line.path('victim'), case.line.path('challenges', name)
    with open(victim, 'w') as file:
        file.write('mine\n')
    os.chmod(victim, 0o600)
    plant(path, victim)
    prefix, threads = None, []
    if race:
        def again():
            while os.path.lexists(path) and time.monotonic() < end:
                time.sleep(0.001)
            if not os.path.lexists(path):
                plant(path, victim)
        end = time.monotonic() + 20
        threads = [threading.Thread(target=again)]
        # Half a second between the two calls is a long time for a thief
        prefix = ['strace', '-qq', '-f', '--seccomp-bpf', '-o', os.devnull, '-P', path,
                  *only(['openat', 'open']), '-e', 'inject=openat:delay_enter=500000']
    for thread in threads:
        thread.start()
    done = case.run(*case.scenario.args, prefix=prefix)
    for thread in threads:
        thread.join()
    wrong = case.right_after()
    if read(victim) != b'mine\n' or os.stat(victim).st_mode & 0o777 != 0o600:
        wrong.append('another file was changed')
    if os.path.lexists(victim + '-new') or os.path.lexists(case.line.path(TOKEN)):
        wrong.append('a file was made elsewhere')
    folder = plant is plant_folder and name == TOKEN    # which must be said to be in the way, too
    lines = [line for line in done.stderr.splitlines() if not line.startswith('strace: ')]
    if done.returncode != (race or folder) or len(lines) != race + 2 * folder or (
            'Traceback' in done.stderr):
        wrong.append('exit status %d, %s' % (done.returncode, case.short('; '.join(lines))))
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    if name != TOKEN and os.path.lexists(path):
        os.unlink(path)
    return wrong + case.settle()


# ---- all of it ----------------------------------------------------------------------------------

def run(ca, quick):
    """Each check (str) and what is wrong (list of str)."""
    for name in WATCHED:
        with Case(SCENARIOS[name], ca) as case:
            for check, wrong in Watch(case).all_wrong().items():
                yield '%s: %s' % (name, check), wrong[:3]
    with Case(SCENARIOS['renew'], ca) as case:
        for plant in PLANTS[:3] if quick else PLANTS:
            for file, race in ((TOKEN, False), (TOKEN, True), (TOKEN + '.tmp', False)):
                if not race or plant not in (plant_hard_link, plant_folder):
                    yield '%s at %s%s' % (plant.__name__, case.short(file), ', in a race'
                                          if race else ''), planted(case, plant, file, race)
