"""What the tests of the whole program have in common: a line in a temporary directory, a web
server for challenges, and openssl as an independent judge of keys and certificates."""
import base64
import contextlib
import hashlib
import http.server
import json
import os
import random
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time

# What a shell starts in the background, or by nohup, ignores signals. The program would inherit and
# keep that; it does not inherit handlers.
for number in signal.SIGINT, signal.SIGHUP:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# How long (seconds) to wait for what takes a moment, on a machine that has much else to do. What
# must not happen by itself takes longer: 600.
PATIENCE = 120

HERE = os.path.dirname(os.path.abspath(__file__))
# The program under test: the built single file, or the two files as they are.
PROGRAM = [sys.executable, '-IS', os.path.abspath(
    os.environ.get('LETSENCRYPT_TINY')
    or os.path.join(os.path.dirname(HERE), 'letsencrypt_tiny.py'))]

SECTIONS = {
    'timing': ('max-key-age-days', 'staging-hours', 'renew-cert-before-expiry-days'),
    'hooks': ('post-certchange', 'post-keychange', 'hook-timeout'),
    'acme': ('account-key', 'challenge-dir', 'directory-url', 'ca-bundle', 'contact',
             'self-check', 'proxy'),
    'dane': ('tlsa', 'dns-resolver', 'dns-servers', 'served'),
    'dirs': ('certs', 'keys', 'backups'),
    'files': ('live', 'staging')}

# Run in place of the program when a test sets the clock. What the run writes gets its times from
# that clock too, for a key's age is its file's time.
OTHER_CLOCK = r'''
import os, runpy, sys, time
real, start = time.time, time.time()
ahead = float(sys.argv[1]) - start
written = time.clock_gettime(5)     # CLOCK_REALTIME_COARSE: by it the kernel dates files
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
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def memory_folder():
    """A folder (path) for temporary files that is in memory, for disks are slow to sync; None if
    there is none, or somebody has chosen another."""
    path = '/dev/shm'
    usable = 'TMPDIR' not in os.environ and os.access(path, os.W_OK) and not (
        os.statvfs(path).f_flag & os.ST_NOEXEC)     # hooks are run from there
    return path if usable else None


tempfile.tempdir = memory_folder() or tempfile.tempdir


def other_file_system(folder):
    """A folder (path) on another file system than `folder`, None if there is none."""
    for path in '/dev/shm', '/tmp', '/run', HERE:
        if os.path.isdir(path) and os.access(path, os.W_OK) and (
                os.stat(path).st_dev != os.stat(folder).st_dev):
            return path
    return None


def only_if(applies):
    """Decorator: a test, or a class of tests, that is not there where it does not apply."""
    return lambda test: test if applies else None


def free_port():
    """A TCP port of 127.0.0.1 (int) on which nobody listens, and that no other process gets soon:
    it is not one of those that the kernel gives to whoever wants any (from 32768)."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(10000, 32768)
            probe.bind(('127.0.0.1', port))
            return port


def wait_for(predicate, seconds, what):
    """Wait until predicate() is true and return its value; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError('%s: not within %s seconds' % (what, seconds))
        time.sleep(0.01)


# ---- openssl as judge ---------------------------------------------------------------------------

def openssl(*args):
    """stdout (bytes) of an openssl command."""
    done = subprocess.run(('openssl',) + args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode:
        raise AssertionError('openssl %s: %s' % (' '.join(args), done.stderr.decode()))
    return done.stdout


def spki(path):
    """SHA-256 (hex) of the public key in a key or certificate file (of its first certificate)."""
    with open(path) as file:
        certificate = 'BEGIN CERTIFICATE' in file.read()
    if certificate:
        text = openssl('x509', '-in', path, '-noout', '-pubkey').decode()
    else:
        text = openssl('pkey', '-in', path, '-pubout').decode()
    der = base64.b64decode(''.join(text.split('\n')[1:-2]))
    return hashlib.sha256(der).hexdigest()


def pair_matches(key, crt):
    """Whether the certificate file `crt` belongs to the key file `key`."""
    return spki(key) == spki(crt)


def cert_names(path):
    """The DNS names of a certificate file, in its order."""
    text = openssl('x509', '-in', path, '-noout', '-ext', 'subjectAltName').decode()
    return re.findall(r'DNS:([^,\s]+)', text)


def cert_dates(path):
    """(not before, not after) of a certificate file, in seconds since 1970."""
    text = openssl('x509', '-in', path, '-noout', '-startdate', '-enddate').decode()
    return tuple(ssl.cert_time_to_seconds(line.split('=')[1]) for line in text.splitlines())


# ---- a web server for challenges ----------------------------------------------------------------

class Web:
    """Serves DIRECTORY/TOKEN as /.well-known/acme-challenge/TOKEN on 127.0.0.1:port.

    `hits`: list of (Host header, path) of every request.
    """

    def __init__(self, directory):
        self.directory, self.hits = directory, []

    def __enter__(self):
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_GET(self):
                web.hits.append((self.headers.get('Host'), self.path))
                body = web.find(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header('Content-Length', str(len(body or b'')))
                self.end_headers()
                self.wfile.write(body or b'')

            def log_message(self, *args):
                """Requests are in `hits`."""

        # Not http.server's own class, which asks DNS for the name of this machine.
        self.server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def find(self, path):
        """Content (bytes) of the challenge file for a URL's path, or None."""
        match = re.match(r'/\.well-known/acme-challenge/([A-Za-z0-9_-]+)\Z', path)
        try:
            with open(os.path.join(self.directory, match.group(1)), 'rb') as file:
                return file.read()
        except (AttributeError, OSError):
            return None


# ---- a certificate line -------------------------------------------------------------------------

class Line:
    """A temporary directory with a configuration and, with `web`, a web server for challenges.

    `ca`: the FakeCA to use (its http_port is set to this line's web server), or None.
    `options`: configuration, with '_' for '-'; a list becomes several lines, None leaves a key out.
    """

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

    def hook(self, name, body=''):
        """Configure a hook `name` ('post-certchange', 'post-keychange') that notes its call
        (see calls()) and then runs the shell commands `body`."""
        script = self.path(name)
        with open(script, 'w') as file:
            file.write(HOOK.format(log=self.path('hooks.log'), body=body))
        os.chmod(script, 0o755)
        self.set(**{name.replace('-', '_'): script})

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

    # -- its files

    def path(self, *parts):
        return os.path.join(self.folder.name, *parts)

    def key(self, name='live'):
        return self.path('keys', name + '.key')

    def crt(self, name='live'):
        return self.path('certs', name + '.crt')

    def state(self):
        """The state file's content; {} if there is none."""
        try:
            with open(self.path('certs', 'live.state')) as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def edit_state(self, function):
        """Rewrite the state file by function(dict), which changes it or returns another."""
        state = self.state()
        result = function(state)
        with open(self.path('certs', 'live.state'), 'w') as file:
            json.dump(state if result is None else result, file)

    def age(self, name, days):
        """Make the key `name` `days` old."""
        then = time.time() - days * 86400
        os.utime(self.key(name), (then, then))

    def snapshot(self):
        """All files below: dict of relative path -> (mode, SHA-256 of the content)."""
        found = {}
        for folder, _, names in os.walk(self.folder.name):
            for path in (os.path.join(folder, name) for name in names):
                with open(path, 'rb') as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
                mode = os.stat(path).st_mode & 0o7777
                found[os.path.relpath(path, self.folder.name)] = mode, digest
        return found

    # -- the program

    def start(self, *args, hooks=False, env=None, input=None, now=None):
        """Start the program as run() does; return its Popen, leader of a session of its own."""
        command = PROGRAM
        if now is not None:
            command = PROGRAM[:2] + ['-c', OTHER_CLOCK, repr(float(now)), PROGRAM[2]]
        command = command + ['-c', self.config] + (['-k'] if hooks else []) + list(args)
        environment = dict({'PATH': os.environ['PATH'], 'HOME': self.folder.name, 'LANG': 'C'},
                           **(env or {}))
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            encoding='utf-8', errors='replace', start_new_session=True)

    def run(self, *args, check=None, timeout=PATIENCE, input=None, **options):
        """Run the program with this configuration and `args`; return a CompletedProcess (text).

        `check`: the exit status that is demanded; `timeout`: seconds, then it and all its children
        are killed; `input`: text for its stdin; options of start(): `hooks`: with -k; `env`: more
        environment; `now`: what its clock shows at the start, in seconds since 1970.
        """
        process = self.start(*args, input=input, **options)
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if check is not None and process.returncode != check:
            raise AssertionError('%s: exit status %s instead of %s\n--- stdout\n%s--- stderr\n%s'
                                 % (' '.join(args), process.returncode, check, out, err))
        return subprocess.CompletedProcess(args, process.returncode, out, err)


# What a hook notes of each call, and the public keys (SHA-256, hex) that it finds in the files.
CALL = ('HOOK', 'CONFIG', 'DOMAINS', 'LIVE_CRT', 'LIVE_KEY', 'STAGING_CRT', 'STAGING_KEY',
        'LIVE_SPKI', 'STAGING_SPKI')
HOOK = r'''#!/bin/sh
spki() {{
    [ -z "$1" ] || openssl pkey -in "$1" -pubout -outform DER | openssl dgst -sha256 -r | cut -c-64
}}
printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$HOOK" "$CONFIG" "$DOMAINS" "$LIVE_CRT" \
    "$LIVE_KEY" "$STAGING_CRT" "$STAGING_KEY" "$(spki "$LIVE_KEY")" "$(spki "$STAGING_KEY")" \
    >> '{log}'
{body}
'''
