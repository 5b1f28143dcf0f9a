#!/usr/bin/env python3
"""End to end against Pebble, the strict test CA of Let's Encrypt's own developers.

    python3 tests/real_pebble.py [Class[.test]]

Needs `pebble` and `pebble-challtestsrv` (Debian's package pebble, 2.10 or newer) and `openssl` on
PATH, PEERS=FOLDER of a venv with acme-tiny 5.0.3, and takes the program under test from
LETSENCRYPT_TINY (default: letsencrypt_tiny.py of this tree). Names are really resolved (by
challtestsrv: every name is 127.0.0.1) and challenges really fetched. Whether a certificate is good
is for openssl to say, not for our own reader. Not found by `python3 -m unittest`, because a
missing part is a failure here, never a skip; .ci/run fetches the parts and runs it.
"""
import contextlib
import functools
import glob
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get('LETSENCRYPT_TINY') or os.path.join(ROOT, 'letsencrypt_tiny.py')
ACME_TINY = os.path.join(ROOT, 'acme_tiny.py')
DAY = 86400


def wait_for(what, condition, seconds=20):
    """The first true answer of condition(), or a failure that says what never came."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError('no %s within %d seconds' % (what, seconds))
        time.sleep(0.05)


def free_ports(count):
    """Ports nobody listens on, all different because all are held at the same time."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


def openssl(*arguments, stdin=None):
    done = subprocess.run(('openssl',) + arguments, input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        raise AssertionError('openssl %s: %s' % (' '.join(arguments), done.stderr or done.stdout))
    return done.stdout


def write(path, text, mode=0o644):
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Pebble:
    """A Pebble in strict mode, the DNS server it asks, and the web server of all names."""

    def __init__(self, folder, environ=None, **config):
        self.folder = folder
        self.environ = dict(os.environ, PEBBLE_VA_NOSLEEP='1')
        self.environ.update(environ or {})
        self.bundle = os.path.join(folder, 'server.pem')
        self.log = os.path.join(folder, 'pebble.log')
        self.webroot = os.path.join(folder, 'www')
        self.challenges = os.path.join(self.webroot, '.well-known', 'acme-challenge')
        os.makedirs(self.challenges)
        server_key = os.path.join(folder, 'server.key')
        openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                '-keyout', server_key, '-out', self.bundle, '-subj', '/CN=localhost',
                '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-days', '30')
        self.processes = []
        handler = functools.partial(QuietHandler, directory=self.webroot)
        self.web = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.http_port = self.web.server_address[1]
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.port, self.management, self.dns, self.dns_management, tls_port = free_ports(5)
        self.config = {
            'listenAddress': '127.0.0.1:%d' % self.port,
            'managementListenAddress': '127.0.0.1:%d' % self.management,
            'certificate': self.bundle, 'privateKey': server_key,
            'httpPort': self.http_port, 'tlsPort': tls_port,
            # One profile only: of several, Pebble would take one at random.
            'profiles': {'default': {'description': 'as ever', 'validityPeriod': 90 * DAY}},
            **config}
        self.url = 'https://127.0.0.1:%d/dir' % self.port

    def start(self):
        names = write(os.path.join(self.folder, 'pebble.json'), json.dumps({'pebble': self.config}))
        dns = '127.0.0.1:%d' % self.dns
        self.spawn('dns.log', 'pebble-challtestsrv', '-dnsserver', dns, '-management',
                   '127.0.0.1:%d' % self.dns_management, '-defaultIPv6', '', '-http01', '',
                   '-https01', '', '-tlsalpn01', '', '-doh', '')
        self.spawn('pebble.log', 'pebble', '-strict', '-config', names, '-dnsserver', dns)
        for port in (self.dns, self.dns_management, self.port, self.management):
            wait_for('server on port %d' % port, functools.partial(self.listens, port))
        return self

    def spawn(self, log, *command):
        with open(os.path.join(self.folder, log), 'ab') as file:
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file,
                                                   stderr=file, env=self.environ))

    def listens(self, port):
        dead = [process.args[0] for process in self.processes if process.poll() is not None]
        if dead:
            raise AssertionError('%s ended:\n%s' % (dead[0], read(self.log)))
        with contextlib.suppress(OSError):
            socket.create_connection(('127.0.0.1', port), 1).close()
            return True
        return False

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def stop(self):
        self.kill()
        self.web.shutdown()
        self.web.server_close()

    def get(self, path):
        """What Pebble's management interface knows, such as its root certificates."""
        context = ssl.create_default_context(cafile=self.bundle)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=context))
        with opener.open('https://127.0.0.1:%d%s' % (self.management, path), timeout=10) as answer:
            return answer.read().decode()

    def fail_dns(self, name):
        """From now on the DNS answers SERVFAIL for this name."""
        connection = http.client.HTTPConnection('127.0.0.1', self.dns_management, timeout=10)
        connection.request('POST', '/set-servfail', json.dumps({'host': name + '.'}))
        if connection.getresponse().status != 200:
            raise AssertionError('challtestsrv refuses set-servfail')
        connection.close()

    def mark(self):
        return os.path.getsize(self.log)

    def requests(self, mark=0):
        """'METHOD /first-part-of-path' of every request since mark, as Pebble logged them."""
        with open(self.log, 'rb') as file:
            file.seek(mark)
            return re.findall(r' ((?:GET|HEAD|POST) /[^/ ]*)\S* -> calling', file.read().decode())


class Line:
    """A certificate line in a folder of its own, used through the command line only."""

    def __init__(self, case, names, **keys):
        self.case, self.ca = case, case.ca
        self.folder = tempfile.mkdtemp(prefix='line-', dir=case.folder)
        self.config = os.path.join(self.folder, 'line.conf')
        self.keys = {
            'max-key-age-days': 100, 'self-check': 'no', 'directory-url': self.ca.url,
            'ca-bundle': self.ca.bundle, 'challenge-dir': self.ca.challenges,
            'account-key': self.path('account.key'), 'certs': self.path('certs'),
            'keys': self.path('keys'), 'backups': self.path('backups')}
        self.write(names, **keys)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, names, **keys):
        self.names = names
        self.keys.update({key.replace('_', '-'): value for key, value in keys.items()})
        lines = ['domains ='] + ['  ' + name for name in names]
        lines += ['%s = %s' % item for item in self.keys.items()]
        write(self.config, '\n'.join(lines) + '\n')

    def run(self, *arguments, status=0):
        command = [sys.executable, '-IS', PROGRAM, '-c', self.config] + list(arguments)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=240)
        said = '%s\n%s%s' % (' '.join(command), done.stdout, done.stderr)
        self.case.assertEqual(done.returncode, status, said)
        self.case.assertNotIn('Traceback', said)
        if status == 0:
            self.case.assertEqual(done.stderr, '', said)
        return done

    def silent_cron(self, *options):
        mark = self.ca.mark()
        done = self.run('cron', *options)
        self.case.assertEqual(done.stdout, '')
        self.case.assertEqual(self.ca.requests(mark), [], 'a run with nothing due asked the CA')

    def hooks(self):
        """Hooks that write down what they were told, for the keys of a config."""
        script = ('#!/bin/sh\necho "$HOOK $DOMAINS ${STAGING_KEY:+staged}" >> %s\n'
                  'cmp -s "$LIVE_KEY" %s && cmp -s "$LIVE_CRT" %s\n' % (
                      self.path('hooks.log'), self.path('keys/live.key'),
                      self.path('certs/live.crt')))
        return {'post_certchange': write(self.path('cert-hook'), script, 0o755),
                'post_keychange': write(self.path('key-hook'), script, 0o755)}

    def hooked(self):
        """What the hooks wrote since the last look."""
        path = self.path('hooks.log')
        lines = read(path).splitlines() if os.path.exists(path) else []
        write(path, '')
        return lines

    def fingerprint(self):
        """The live files' content and the files in use, to see that nothing changed."""
        files = [self.path('keys', name) for name in os.listdir(self.path('keys'))]
        files += [self.path('certs', name) for name in os.listdir(self.path('certs'))]
        return {path: read(path) for path in files if not path.endswith(('.lock', '.state'))}


def judge(case, pem, key, names):
    """Is this chain good for these names, with this key? As openssl sees it."""
    blocks = re.findall('-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n', pem, re.S)
    case.assertEqual(''.join(blocks), pem, 'more or less than certificates')
    case.assertEqual(len(blocks), 1 + int(case.ca.environ.get('PEBBLE_CHAIN_LENGTH', 1)))
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        leaf = write(os.path.join(folder, 'leaf.pem'), blocks[0])
        chain = write(os.path.join(folder, 'chain.pem'), ''.join(blocks[1:]))
        root = write(os.path.join(folder, 'root.pem'), case.ca.get('/roots/0'))
        for name in names:
            openssl('verify', '-CAfile', root, '-untrusted', chain, '-purpose', 'sslserver',
                    '-verify_hostname', name, leaf)
        found = re.findall(r'DNS:([^,\s]+)', openssl('x509', '-in', leaf, '-noout', '-ext',
                                                     'subjectAltName'))
        case.assertEqual(sorted(found), sorted(names))
        public = openssl('x509', '-in', leaf, '-noout', '-pubkey')
    case.assertEqual(public, openssl('pkey', '-in', key, '-pubout'))
    return public


class PebbleCase(unittest.TestCase):
    """Starts a Pebble of the class's own kind for all its tests."""
    environ = {'PEBBLE_WFE_NONCEREJECT': '5', 'PEBBLE_AUTHZREUSE': '50'}
    config = {}
    count = 0

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix='real-pebble-')
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.ca = Pebble(os.path.join(cls.folder, 'ca'), cls.environ, **cls.config)
        cls.addClassCleanup(cls.ca.stop)
        cls.ca.start()

    def names(self, count=2):
        """Names no other test of this run uses, so that no authorization is found again."""
        PebbleCase.count += 1
        return ['n%d.t%d.example.org' % (n, PebbleCase.count) for n in range(count)]

    def line(self, names=None, **keys):
        return Line(self, names or self.names(), **keys)

    def judge(self, line, tip='live', names=None):
        return judge(self, read(line.path('certs', tip + '.crt')),
                     line.path('keys', tip + '.key'), names or line.names)

    def check_no_challenge_left(self):
        self.assertEqual(os.listdir(self.ca.challenges), [])


class Life:
    """What a line lives through; for every kind of CA below."""

    def test_first_certificate_then_silence(self):
        for keys, bits in (({}, 'P-256'), ({'key-type': 'ec-p384'}, 'P-384'),
                           ({'key-length': 2048}, '2048 bit')):
            with self.subTest(bits):
                line = self.line(**keys)
                line.run('init')
                public = self.judge(line)
                text = openssl('pkey', '-pubin', '-noout', '-text', stdin=public)
                self.assertIn(bits, text)
                self.check_no_challenge_left()
                line.silent_cron()
                before = line.fingerprint()
                line.run('init')
                self.assertEqual(line.fingerprint(), before, 'a second init changed something')
                self.assertIn('.org', line.run('status').stdout)

    def test_account_keys(self):
        for kind, option in (('RSA', 'rsa_keygen_bits:2048'), ('EC', 'ec_paramgen_curve:P-256'),
                             ('EC', 'ec_paramgen_curve:P-384')):
            with self.subTest(option):
                line = self.line(self.names(1))
                made = openssl('genpkey', '-algorithm', kind, '-pkeyopt', option)
                key = write(line.keys['account-key'], made, 0o600)
                before = read(key)
                line.run('init')
                self.judge(line)
                line.run('renew')
                self.judge(line)
                self.assertEqual(read(key), before)

    def test_ten_names_one_of_them_international(self):
        names = self.names(9)
        idn = 'b\u00fccher.t%d.example.org' % PebbleCase.count
        line = self.line(names + [idn])
        line.run('init')
        self.judge(line, names=names + [idn.encode('idna').decode()])
        line.silent_cron()

    def test_renew_keeps_key_and_account(self):
        line = self.line()
        line.run('init')
        key, chain = read(line.path('keys/live.key')), read(line.path('certs/live.crt'))
        account, mark = read(line.keys['account-key']), self.ca.mark()
        line.run('renew')
        self.judge(line)
        self.assertEqual(read(line.path('keys/live.key')), key)
        self.assertEqual(read(line.keys['account-key']), account)
        self.assertNotEqual(read(line.path('certs/live.crt')), chain)
        self.assertNotIn('POST /sign-me-up', self.ca.requests(mark), 'the account was known')
        backups = [read(line.path('backups', name)) for name in os.listdir(line.path('backups'))]
        self.assertIn(chain, backups)
        line.silent_cron()

    def test_a_name_added_and_one_dropped(self):
        line = self.line()
        line.run('init')
        key = read(line.path('keys/live.key'))
        line.write(line.names[1:] + self.names(1))
        line.run('cron')
        self.judge(line)
        self.assertEqual(read(line.path('keys/live.key')), key)
        line.silent_cron()

    def test_hooks_follow_certificate_and_key(self):
        line = self.line(staging_hours=0)
        line.write(line.names, **line.hooks())
        line.run('init', '-k')
        names = ' '.join(line.names)
        cert, key = 'post-certchange %s ' % names, 'post-keychange %s ' % names
        self.assertEqual(line.hooked(), [cert, key])
        line.run('renew', '-k')
        self.assertEqual(line.hooked(), [cert], 'the key stayed, so DNS stays')
        line.run('renew', '-k', '--new-key')
        self.assertEqual(line.hooked(), [cert, key])
        self.judge(line)
        line.silent_cron('-k')
        self.assertEqual(line.hooked(), [])

    def test_key_rollover_through_staging(self):
        line = self.line(staging_hours='0.001')
        line.write(line.names, **line.hooks())
        line.run('init', '-k')
        line.hooked()
        key, chain = read(line.path('keys/live.key')), read(line.path('certs/live.crt'))
        then = time.time() - 101 * DAY
        os.utime(line.path('keys/live.key'), (then, then))
        line.run('cron', '-k')
        self.assertEqual(read(line.path('keys/live.key')), key)
        self.assertEqual(read(line.path('certs/live.crt')), chain)
        self.judge(line, 'staging')
        staged = read(line.path('keys/staging.key')), read(line.path('certs/staging.crt'))
        self.assertEqual(line.hooked(), ['post-keychange %s staged' % ' '.join(line.names)])

        def unstaged():
            line.run('cron', '-k')
            return not os.path.exists(line.path('keys/staging.key'))
        wait_for('unstaging', unstaged)
        self.assertEqual((read(line.path('keys/live.key')), read(line.path('certs/live.crt'))),
                         staged)
        self.assertFalse(os.path.exists(line.path('certs/staging.crt')))
        self.judge(line)
        names = ' '.join(line.names)
        self.assertEqual(line.hooked(),
                         ['post-certchange %s ' % names, 'post-keychange %s ' % names])
        backups = [read(line.path('backups', name)) for name in os.listdir(line.path('backups'))]
        self.assertIn(key, backups)
        self.assertIn(chain, backups)
        line.silent_cron('-k')

    def check_failure(self, line, before, *words):
        """One line that says it, exit 1, nothing changed, and no new try a moment later."""
        done = line.run('cron', status=1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in ('letsencrypt-tiny: ', line.config) + words:
            self.assertIn(word, done.stderr)
        self.assertEqual(line.fingerprint(), before)
        self.check_no_challenge_left()
        mark = self.ca.mark()
        line.run('cron', status=1)
        self.assertEqual(self.ca.requests(mark), [], 'no back-off after a failure')

    def test_failed_validation_leaves_everything(self):
        for kind in ('not served', 'not in DNS'):
            with self.subTest(kind):
                line = self.line()
                line.run('init')
                before, (bad,) = line.fingerprint(), self.names(1)
                if kind == 'not in DNS':
                    self.ca.fail_dns(bad)
                    line.write(line.names + [bad])
                    self.check_failure(line, before, bad)
                else:
                    os.mkdir(line.path('elsewhere'))
                    line.write([bad], challenge_dir=line.path('elsewhere'))
                    self.check_failure(line, before, bad, '404')
                    self.assertEqual(os.listdir(line.path('elsewhere')), [])
                    line.write([bad], challenge_dir=self.ca.challenges)
                    line.run('renew')  # by hand one does not wait
                    self.judge(line)
                    line.silent_cron()

    def test_name_that_the_ca_refuses(self):
        line = self.line()
        line.run('init')
        before = line.fingerprint()
        line.write(line.names + ['www.blocked.example'])
        self.check_failure(line, before, 'www.blocked.example')

    def test_acme_tiny_alone(self):
        names = self.names(3)
        files = Request(self, names)
        done = files.run(ACME_TINY)
        self.assertEqual(done.returncode, 0, done.stderr)
        judge(self, done.stdout, files.leaf, names)
        self.check_no_challenge_left()
        self.assertEqual(files.run(ACME_TINY, '--quiet').stderr, '')


BLOCKED = ['blocked.example']


class RsaAuthority(Life, PebbleCase):
    config = {'keyAlgorithm': 'rsa', 'domainBlocklist': BLOCKED}


class EcdsaAuthority(Life, PebbleCase):
    """All that is optional: valid authorizations, alternate and long chains, Retry-After."""
    environ = {'PEBBLE_WFE_NONCEREJECT': '5', 'PEBBLE_AUTHZREUSE': '100',
               'PEBBLE_CHAIN_LENGTH': '3', 'PEBBLE_ALTERNATE_ROOTS': '2'}
    config = {'keyAlgorithm': 'ecdsa', 'domainBlocklist': BLOCKED,
              'retryAfter': {'authz': 1, 'order': 1}}

    def test_valid_authorizations_are_not_proved_again(self):
        line = self.line()
        line.run('init')
        mark = self.ca.mark()
        line.run('renew')
        self.judge(line)
        self.assertNotIn('POST /chalZ', self.ca.requests(mark))


class RefusingAuthority(Life, PebbleCase):
    """Refuses every second nonce."""
    environ = {'PEBBLE_WFE_NONCEREJECT': '50', 'PEBBLE_AUTHZREUSE': '0',
               'PEBBLE_CHAIN_LENGTH': '2'}
    config = {'keyAlgorithm': 'ecdsa', 'domainBlocklist': BLOCKED}


class SlowAuthority(PebbleCase):
    """Takes its time for each validation, as a real CA does."""
    environ = {'PEBBLE_WFE_NONCEREJECT': '5', 'PEBBLE_AUTHZREUSE': '0', 'PEBBLE_VA_NOSLEEP': '0',
               'PEBBLE_VA_SLEEPTIME': '3'}

    def test_ten_names(self):
        line = self.line(self.names(10))
        start = time.monotonic()
        line.run('init')
        self.assertLess(time.monotonic() - start, 25, 'ten validations at once, not in a row')
        self.judge(line)

    def test_failed_validation(self):
        line = self.line()
        os.mkdir(line.path('elsewhere'))
        line.write(line.names, challenge_dir=line.path('elsewhere'))
        done = line.run('init', status=1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertRegex(done.stderr, '|'.join(line.names))  # which one fails first is chance
        self.assertEqual(os.listdir(line.path('elsewhere')), [])


class ForgetfulAuthority(PebbleCase):
    def test_account_lost_by_the_ca(self):
        line = self.line()
        line.run('init')
        self.ca.kill()
        self.ca.start()  # Pebble keeps everything in memory
        line.run('renew')
        self.judge(line)
        mark = self.ca.mark()
        line.run('renew')
        self.assertNotIn('POST /sign-me-up', self.ca.requests(mark))

    def test_ca_out_of_reach(self):
        line = self.line()
        line.run('init')
        before = line.fingerprint()
        self.ca.kill()
        try:
            done = line.run('renew', status=1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn('127.0.0.1:%d' % self.ca.port, done.stderr)
            self.assertEqual(line.fingerprint(), before)
        finally:
            self.ca.start()
        line.run('renew')
        self.judge(line)


class Request:
    """Account key, leaf key and CSR, as the users of acme-tiny have them."""

    def __init__(self, case, names):
        self.case = case
        self.folder = tempfile.mkdtemp(prefix='request-', dir=case.folder)
        self.leaf = os.path.join(self.folder, 'leaf.key')
        self.csr = os.path.join(self.folder, 'leaf.csr')
        self.account = write(os.path.join(self.folder, 'account.key'), openssl('genrsa', '2048'))
        openssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                '-keyout', self.leaf, '-out', self.csr, '-subj', '/CN=' + names[0], '-addext',
                'subjectAltName=' + ','.join('DNS:' + name for name in names))

    def command(self, **files):
        return ['--account-key', files.get('account', self.account),
                '--csr', files.get('csr', self.csr), '--acme-dir', self.case.ca.challenges,
                '--directory-url', self.case.ca.url]

    def run(self, *program, check=False, **files):
        script, options = program[0], list(program[1:])
        command = [sys.executable, script] + self.command(**files) + options
        if not check:
            command.append('--disable-check')
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=120,
                              env=dict(os.environ, SSL_CERT_FILE=self.case.ca.bundle))


class SideBySide(PebbleCase):
    """acme-tiny 5.0.3 and acme_tiny.py get the same work: who swaps the file notices nothing."""
    environ = {'PEBBLE_WFE_NONCEREJECT': '0', 'PEBBLE_AUTHZREUSE': '100'}
    config = {'domainBlocklist': BLOCKED}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        peers = os.environ.get('PEERS', '')
        found = glob.glob(os.path.join(peers, 'lib', 'python3*', 'site-packages', 'acme_tiny.py'))
        if not found:
            raise AssertionError('no acme-tiny 5.0.3 in the venv PEERS=' + peers)
        cls.theirs = found[0]

    def both(self, *options, requests=None, status=0, **files):
        """Runs of theirs and ours, each with an account and names of its own unless given."""
        requests = requests or [Request(self, self.names(2)) for _ in 'ab']
        done = [request.run(program, *options, **files)
                for request, program in zip(requests, (self.theirs, ACME_TINY))]
        for one in done:
            self.assertEqual(one.returncode, status, one.stderr)
        return requests, done

    def check_same_log(self, requests, done):
        """The same lines, but for names and account. With several names their order may differ:
        theirs takes the names in random order and one by one, ours all at once."""
        logs = []
        for request, one in zip(requests, done):
            text = one.stderr.replace(request.folder, 'FOLDER')
            text = re.sub(r'n(\d)\.t\d+\.example\.org', r'name\1', text)
            text = re.sub('(Found domains: )(.*)',
                          lambda match: match[1] + ', '.join(sorted(match[2].split(', '))), text)
            text = re.sub(r'/my-account/\S+', '/my-account/ID', text)
            logs.append(sorted(text.splitlines()) if 'name1' in text else text.splitlines())
        self.assertEqual(logs[0], logs[1])

    def test_success_then_again_with_valid_authorizations(self):
        self.check_same_log(*self.both(requests=[Request(self, self.names(1)) for _ in 'ab']))
        requests, done = self.both()
        self.check_same_log(requests, done)
        for one, request in zip(done, requests):
            names = re.search('Found domains: (.*)', one.stderr)[1].split(', ')
            judge(self, one.stdout, request.leaf, names)
        requests, done = self.both(requests=requests)
        self.assertEqual(done[0].stderr.count('Already verified'), 2)
        self.assertIn('Already registered!', done[0].stderr)
        self.check_same_log(requests, done)

    def test_contact(self):
        requests, done = self.both('--contact', 'mailto:a@example.org', 'mailto:b@example.org')
        self.assertIn('Updated contact details:\nmailto:a@', done[0].stderr)
        self.check_same_log(requests, done)

    def test_contact_that_the_ca_refuses(self):
        """The one wanted difference: what is optional never costs the certificate."""
        request = Request(self, self.names(1))
        done = request.run(ACME_TINY, '--contact', 'not an address')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('unsupportedContact', done.stderr)
        self.assertNotIn('Updated contact', done.stderr)
        judge(self, done.stdout, request.leaf, ['n0.t%d.example.org' % PebbleCase.count])

    def test_quiet(self):
        requests, done = self.both('--quiet')
        self.check_same_log(requests, done)
        self.assertEqual(done[1].stderr, '')

    def test_missing_files(self):
        for kind in ('account', 'csr'):
            with self.subTest(kind):
                missing = os.path.join(self.folder, 'no-such-file')
                _, done = self.both(status=1, **{kind: missing})
                for one in done:
                    self.assertEqual(one.stdout, '')
                    self.assertRegex(one.stderr, "(No such file|Can't open|cannot open)")

    def test_name_without_address(self):
        requests, names = [], []
        for _ in 'ab':
            names += self.names(1)
            self.ca.fail_dns(names[-1])
            requests.append(Request(self, names[-1:]))
        _, done = self.both(requests=requests, status=1)
        for one, name in zip(done, names):
            self.assertIn('could not resolve', one.stderr)
            self.assertIn(name, one.stderr.splitlines()[-1])
        # Theirs leaves its challenge file behind, which is not to be imitated.
        left = os.listdir(self.ca.challenges)
        self.assertEqual(len(left), 1)
        os.remove(os.path.join(self.ca.challenges, left[0]))

    def test_name_that_the_ca_refuses(self):
        requests = [Request(self, ['blocked.example']) for _ in 'ab']
        _, done = self.both(requests=requests, status=1)
        for one in done:
            self.assertIn('rejectedIdentifier', one.stderr)
            self.assertIn('blocked.example is a forbidden domain', one.stderr)

    def test_check_by_the_client_itself(self):
        """localhost is the one name that this machine's own resolver knows as well."""
        requests = [Request(self, ['localhost']) for _ in 'ab']
        self.check_same_log(*self.both('--check-port', str(self.ca.http_port), requests=requests,
                                       check=True))
        requests = [Request(self, ['localhost']) for _ in 'ab']
        _, done = self.both('--check-port', str(free_ports(1)[0]), requests=requests, check=True,
                            status=1)
        for one in done:
            self.assertIn('http://localhost:', one.stderr)
            self.assertIn('refused', one.stderr)
        for name in os.listdir(self.ca.challenges):
            os.remove(os.path.join(self.ca.challenges, name))

    def test_as_a_library(self):
        """Results and the classes of errors of get_crt(), with a logger of the caller's."""
        code = ('import io, json, logging, sys\n'
                'sys.path.insert(0, sys.argv[1])\n'
                'import acme_tiny\n'
                'stream, log = io.StringIO(), logging.getLogger("mine")\n'
                'log.addHandler(logging.StreamHandler(stream))\n'
                'log.setLevel(logging.INFO)\n'
                'log.propagate = False\n'
                'kind = "none"\n'
                'pem = ""\n'
                'try:\n'
                '    pem = acme_tiny.get_crt(*sys.argv[2:5], log=log, disable_check=True,\n'
                '                            directory_url=sys.argv[5], contact=None)\n'
                'except ValueError:\n'
                '    kind = "ValueError"\n'
                'except IOError:\n'
                '    kind = "IOError"\n'
                'print(json.dumps([kind, type(pem).__name__, pem.count("BEGIN CERT"),\n'
                '                  sorted(stream.getvalue().splitlines())]))\n')
        request = Request(self, self.names(1))
        blocked = Request(self, ['blocked.example'])
        missing = os.path.join(self.folder, 'no-such-file')
        for account, csr, url, expected in (
                (request.account, request.csr, self.ca.url, 'none'),
                (request.account, blocked.csr, self.ca.url, 'ValueError'),
                (missing, request.csr, self.ca.url, 'IOError'),
                (request.account, missing, self.ca.url, 'IOError'),
                (request.account, request.csr, self.ca.url + 'x', 'ValueError')):
            # Once before, so that both find the account and valid authorizations.
            found = []
            for module in (self.theirs, self.theirs, ACME_TINY):
                done = subprocess.run(
                    [sys.executable, '-c', code, os.path.dirname(module), account, csr,
                     self.ca.challenges, url], stdout=subprocess.PIPE,
                    env=dict(os.environ, SSL_CERT_FILE=self.ca.bundle), timeout=60)
                found.append(json.loads(done.stdout.decode()))
            self.assertEqual(found[1][0], expected)
            self.assertEqual(found[2], found[1])


if __name__ == '__main__':
    unittest.main()
