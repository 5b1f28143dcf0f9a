"""acme_tiny.py alone: whoever used acme-tiny 5.0.3 swaps the file and notices nothing but speed."""
import contextlib
import gc
import inspect
import io
import logging
import os
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

import acme_tiny
from tests.fake_ca import FakeCA
from tests.support import HERE, PATIENCE, Web, cert_names, openssl, pair_matches

SCRIPT = os.path.join(os.path.dirname(HERE), 'acme_tiny.py')


class Case(unittest.TestCase):
    """A folder with account keys, a domain's key and requests for it; a CA and a web server."""

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = temporary.name
        os.mkdir(cls.path('challenges'))
        openssl('genrsa', '-out', cls.path('account.key'), '2048')
        for name in 'ec.key', 'domain.key':
            openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out',
                    cls.path(name))
        cls.csr('cn.csr', '/CN=example.org')
        cls.csr('san.csr', '/', 'DNS:example.org,DNS:www.example.org')
        cls.csr('critical.csr', '/', 'critical,DNS:example.org,DNS:www.example.org')
        cls.csr('both.csr', '/CN=example.org', 'DNS:www.example.org')
        cls.web = Web(cls.path('challenges'))
        cls.web.__enter__()
        cls.addClassCleanup(cls.web.__exit__)
        cls.ca = FakeCA(http_port=cls.web.port)
        cls.ca.start()
        cls.addClassCleanup(cls.ca.stop)
        # What acme-tiny's users have to set for a CA of their own
        cls.trust = {'SSL_CERT_FILE': cls.ca.bundle}

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    @classmethod
    def csr(cls, name, subject, names=None, key='domain.key'):
        config = cls.path('openssl.conf')
        with open(config, 'w') as file:
            file.write('[req]\ndistinguished_name=dn\n%s[dn]\n[ext]\n%s' % (
                'req_extensions=ext\n' if names else '',
                'subjectAltName=%s\n' % names if names else ''))
        openssl('req', '-new', '-key', cls.path(key), '-subj', subject, '-config', config,
                '-out', cls.path(name))

    def setUp(self):
        self.ca.clear()
        del self.ca.faults[:], self.web.hits[:]
        self.addCleanup(lambda: self.assertEqual(os.listdir(self.path('challenges')), []))

    def words(self, csr='cn.csr', key='account.key', check=False):
        """The arguments that are always needed."""
        return ['--account-key', self.path(key), '--csr', self.path(csr), '--acme-dir',
                self.path('challenges'), '--directory-url', self.ca.directory_url] + (
                    [] if check else ['--disable-check'])

    def script(self, *args, env=None):
        """Run the script as its users do."""
        env = dict({'PATH': os.environ['PATH']}, **(self.trust if env is None else env))
        done = subprocess.run([sys.executable, SCRIPT, *args], env=env, cwd='/',
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=PATIENCE)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def get_crt(self, csr='cn.csr', **options):
        """acme_tiny.get_crt() in this process; the chain and what it logged."""
        log, text = logging.getLogger('test'), io.StringIO()
        log.propagate, log.handlers = False, [logging.StreamHandler(text)]
        log.setLevel(logging.INFO)
        options = dict({'account_key': self.path('account.key'), 'csr': self.path(csr),
                        'acme_dir': self.path('challenges'), 'log': log, 'disable_check': True,
                        'directory_url': self.ca.directory_url}, **options)
        with mock.patch.dict(os.environ, self.trust):
            return acme_tiny.get_crt(**options), text.getvalue()

    def assert_chain(self, text, *names):
        self.assertEqual(text.replace('\n\n', '\n'), self.ca.issued[-1].chain.replace('\n\n', '\n'))
        with open(self.path('chain.pem'), 'w') as file:
            file.write(text)
        self.assertEqual(sorted(cert_names(file.name)), sorted(names))
        return file.name


class Script(Case):

    def test_chain_on_stdout_log_on_stderr(self):
        status, out, err = self.script(*self.words('san.csr'))
        self.assertEqual(status, 0, err)
        chain = self.assert_chain(out, 'example.org', 'www.example.org')
        self.assertTrue(pair_matches(self.path('domain.key'), chain))
        openssl('verify', '-CAfile', self.ca.bundle, '-untrusted', chain, chain)
        lines = err.splitlines()
        for line in ('Parsing account key...', 'Parsing CSR...', 'Getting directory...',
                     'Registering account...', 'Creating new order...', 'Order created!',
                     'Verifying example.org...', 'Verifying www.example.org...',
                     'example.org verified!', 'www.example.org verified!',
                     'Signing certificate...', 'Certificate signed!'):
            self.assertIn(line, lines)
        self.assertRegex(err, r'(?m)^Found domains: .*www\.example\.org')
        self.assertRegex(err, r'(?m)^(Registered!|Already registered!) Account ID: '
                         + re.escape(self.ca.accounts[0].url))

    def test_quiet(self):
        status, out, err = self.script('--quiet', *self.words())
        self.assertEqual((status, err), (0, ''))
        self.assert_chain(out, 'example.org')
        # ... except for errors
        self.ca.fault('order', 'problem', detail='no way')
        status, out, err = self.script('--quiet', *self.words())
        self.assertEqual((status, out, len(err.splitlines())), (1, '', 1))
        self.assertIn('no way', err)

    def test_elliptic_account_key(self):
        """Beyond acme-tiny, which takes RSA only."""
        status, out, err = self.script(*self.words(key='ec.key'))
        self.assertEqual(status, 0, err)
        self.assert_chain(out, 'example.org')

    def test_contact(self):
        contacts = 'mailto:a@example.org', 'mailto:b@example.org'
        for some in contacts, contacts, ():     # a new account, then one that is there
            status, _, err = self.script(*self.words(key='contact.key'), '--contact', *some)
            self.assertEqual(status, 0, err)
            self.assertIn('Updated contact details:\n' + '\n'.join(some) + '\n', err)
            self.assertEqual(self.ca.accounts[-1].contact, list(some))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        openssl('genrsa', '-out', cls.path('contact.key'), '2048')

    def test_request_on_standard_input(self):
        words = self.words()
        words[words.index('--csr') + 1] = '/dev/stdin'
        with open(self.path('cn.csr')) as file:
            done = subprocess.run([sys.executable, SCRIPT, *words], stdin=file, timeout=60,
                                  env=dict(self.trust, PATH=os.environ['PATH']),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_already_verified(self):
        for thing in self.ca.objects.values():
            if hasattr(thing, 'challenges'):    # an authorization that another test got
                thing.status = 'expired'
        with mock.patch.object(self.ca, 'reuse_authz', True):
            self.get_crt()
            # An order that is ready at once shows none; this one has something left to do
            status, out, err = self.script(*self.words('san.csr'))
        self.assertEqual(status, 0, err)
        self.assertIn('Already verified: example.org, skipping...\n', err)
        self.assertIn('Verifying www.example.org...\n', err)
        self.assert_chain(out, 'example.org', 'www.example.org')

    def test_old_option_for_the_ca(self):
        words = self.words()[:6]
        status, out, err = self.script(*words, '--disable-check', '--ca', self.ca.url)
        self.assertEqual(status, 0, err)
        self.assert_chain(out, 'example.org')

    def test_errors_are_one_line_and_status_1(self):
        for kind, args, words in (
                ('order', {'type': 'rejectedIdentifier', 'detail': 'not \x1b[2Jyou'}, 'not .*you'),
                ('finalize', {'type': 'badCSR', 'detail': 'bad key'}, 'bad key')):
            self.ca.fault(kind, 'problem', **args)
            status, out, err = self.script(*self.words())
            self.assertEqual((status, out), (1, ''))
            self.assertNotIn('Traceback', err)
            self.assertRegex(err.splitlines()[-1], words)
            self.assertTrue(err.replace('\n', '').isprintable())
        status, out, err = self.script(*self.words(), env={})
        self.assertEqual((status, out), (1, ''))
        self.assertIn('certificate verify failed', err.splitlines()[-1])

    def test_usage(self):
        for args in [], ['--csr', 'x'], self.words() + ['--no-such-option']:
            status, out, err = self.script(*args)
            self.assertEqual((status, out), (2, ''))
            self.assertIn('usage:', err)
        status, out, err = self.script('--help')
        self.assertEqual((status, err), (0, ''))
        for option in ('--account-key', '--csr', '--acme-dir', '--quiet', '--disable-check',
                       '--directory-url', '--ca', '--contact', '--check-port'):
            self.assertIn(option + ' ', out + ' ')

    def test_a_failed_challenge(self):
        with mock.patch.object(self.ca, 'http_port', 1):
            status, out, err = self.script(*self.words())
        self.assertEqual((status, out), (1, ''))
        self.assertRegex(err, 'Challenge did not pass for example.org: .*refused')

    def test_runs_as_a_program(self):
        with open(SCRIPT) as file:
            self.assertRegex(file.readline(), '^#!.*python3')


class Module(Case):

    def test_signature(self):
        """By name and by place, with the defaults of 5.0.3."""
        parameters = inspect.signature(acme_tiny.get_crt).parameters
        self.assertEqual(list(parameters)[:9], [
            'account_key', 'csr', 'acme_dir', 'log', 'CA', 'disable_check', 'directory_url',
            'contact', 'check_port'])
        defaults = {name: p.default for name, p in parameters.items()}
        for name, value in {'CA': 'https://acme-v02.api.letsencrypt.org', 'disable_check': False,
                            'directory_url': 'https://acme-v02.api.letsencrypt.org/directory',
                            'contact': None, 'check_port': None}.items():
            self.assertEqual(defaults[name], value)
        self.assertEqual(acme_tiny.DEFAULT_CA, defaults['CA'])
        self.assertEqual(acme_tiny.DEFAULT_DIRECTORY_URL, defaults['directory_url'])

    def test_get_crt(self):
        for csr, names in (('both.csr', ['example.org', 'www.example.org']),
                           ('critical.csr', ['example.org', 'www.example.org'])):
            chain, log = self.get_crt(csr)
            self.assert_chain(chain, *names)
            self.assertIn('www.example.org verified!', log)
        # The old argument wins over directory_url if it is given, as ever
        chain, log = self.get_crt(CA=self.ca.url, directory_url='https://127.0.0.1:1/',
                                  contact=['mailto:a@example.org'])
        self.assert_chain(chain, 'example.org')
        self.assertIn('Updated contact details:\nmailto:a@example.org', log)

    def test_get_crt_by_place(self):
        with mock.patch.dict(os.environ, self.trust), mock.patch.object(
                acme_tiny.LOGGER, 'disabled', True):
            chain = acme_tiny.get_crt(
                self.path('account.key'), self.path('cn.csr'), self.path('challenges'),
                acme_tiny.LOGGER, acme_tiny.DEFAULT_CA, True, self.ca.directory_url, None, None)
        self.assert_chain(chain, 'example.org')

    def test_main(self):
        out, log = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, self.trust), mock.patch('sys.stdout', out), \
                mock.patch.object(acme_tiny.LOGGER, 'handlers', [logging.StreamHandler(log)]):
            acme_tiny.main(self.words())
        self.assert_chain(out.getvalue(), 'example.org')
        self.assertIn('Certificate signed!', log.getvalue())

    def test_logger(self):
        """It is there before main(), takes handlers, and keeps what its user did to it."""
        code = r'''
import io, logging, sys
sys.path.insert(0, sys.argv.pop(1))
import acme_tiny
text = io.StringIO()
if sys.argv[1] == 'clear':
    del acme_tiny.LOGGER.handlers[:]
acme_tiny.LOGGER.addHandler(logging.StreamHandler(text))
assert isinstance(acme_tiny.LOGGER, logging.Logger)
assert acme_tiny.LOGGER.name == 'acme_tiny' and acme_tiny.LOGGER.level == logging.INFO
acme_tiny.main(sys.argv[2:])
assert 'Certificate signed!' in text.getvalue(), text.getvalue()
assert text.getvalue().count('Signing') == 1, text.getvalue()
'''
        for how in 'add', 'clear':
            done = subprocess.run(
                [sys.executable, '-c', code, os.path.dirname(SCRIPT), how] + self.words(),
                env=dict(self.trust, PATH=os.environ['PATH']), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            self.assertEqual(done.stderr.decode().count('Signing certificate...'),
                             int(how == 'add'))

    def test_loaded_by_path(self):
        """Nothing in it asks where it was loaded from, or under which name."""
        code = r'''
import importlib.util, logging, runpy, sys
way, path, *words = sys.argv[1:]
if way == 'run_path':
    runpy.run_path(path)['main'](words)
else:
    spec = importlib.util.spec_from_file_location('another_name', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logging.getLogger('another_name').setLevel(logging.ERROR)   # as if made at import
    module.main(words)
'''
        for way in 'run_path', 'spec':
            done = subprocess.run(
                [sys.executable, '-c', code, way, SCRIPT] + self.words(),
                env=dict(self.trust, PATH=os.environ['PATH']), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            self.assertEqual(done.stderr.count(b'Signing certificate...'), int(way == 'run_path'))

    def test_no_connection_is_left(self):
        """A program may ask for many certificates."""
        def sockets():
            gc.collect()
            return sum(type(thing).__module__ == 'acme_tiny' and isinstance(thing, ssl.SSLSocket)
                       and thing.fileno() >= 0 for thing in gc.get_objects())
        self.get_crt()
        before = sockets()
        for _ in range(3):
            self.get_crt()
        self.assertLessEqual(sockets(), before)

    def test_logger_without_handlers_stays_so(self):
        """As where an application has set up logging of its own."""
        with mock.patch.object(acme_tiny.LOGGER, 'handlers', []), mock.patch.object(
                acme_tiny.LOGGER, 'propagate', False), mock.patch(
                'logging.lastResort', None), mock.patch('sys.stderr', io.StringIO()):
            self.get_crt(log=None)
            self.assertEqual(acme_tiny.LOGGER.handlers, [])

    def raises(self, kind, words, **options):
        with self.assertRaisesRegex(kind, words) as caught:
            self.get_crt(**options)
        return caught.exception

    def test_errors_of_the_ca(self):
        for status in 400, 403, 500:
            self.ca.fault('order', 'problem', status=status, type='malformed', detail='My words')
            self.ca.fault('account', 'problem', status=status, detail='My words')
            self.raises(ValueError, 'My words')
            del self.ca.faults[:]
        self.ca.fault('authz', 'drop', times=2)
        self.raises(ValueError, 'authz')
        for wrong, words in ('wrong_key', 'another key'), ('planted_key', 'certificate'):
            with mock.patch.object(self.ca, 'misissue', wrong):
                self.raises(ValueError, words)

    def test_errors_of_files(self):
        """Those that acme-tiny's own tests look for."""
        error = self.raises(IOError, 'Error loading /foo/bar', csr='/foo/bar')
        self.assertIn('Error loading /foo/bar', error.args[0])
        error = self.raises(IOError, '(?i)(could not|unable|can.t|cannot) (read|load|open)',
                            account_key='/foo/bar')
        self.assertIn('/foo/bar', str(error))
        self.raises(IOError, 'none', acme_dir=self.path('none'))
        self.assertEqual([r.kind for r in self.ca.requests if r.kind == 'challenge'], [])

    def test_files_of_another_kind(self):
        for name, text in ('empty', ''), ('garbage', 'not a key\n'):
            with open(self.path(name), 'w') as file:
                file.write(text)
            self.raises(IOError, '', csr=name)
            self.raises(IOError, '', account_key=self.path(name))
        self.raises(IOError, '', csr='account.key')
        self.raises(IOError, '', account_key=self.path('cn.csr'))
        self.assertEqual(self.ca.requests, [])

    def test_same_key_for_account_and_domain(self):
        self.csr('own.csr', '/CN=example.org', key='account.key')
        self.raises(ValueError, "key is that of an account", csr='own.csr')

    def test_invalid_domain(self):
        self.csr('bad.csr', '/CN=-.example.org')
        self.raises(ValueError, 'rejectedIdentifier', csr='bad.csr')

    def test_no_names_at_all(self):
        self.csr('none.csr', '/O=Nobody')
        self.raises(ValueError, '', csr='none.csr')


class Check(Case):
    """The look at the challenge file before the CA is told: fatal here, as in acme-tiny."""

    def setUp(self):
        super().setUp()
        real = socket.getaddrinfo

        def here(host, *args, **options):
            return real('127.0.0.1' if host == 'example.org' else host, *args, **options)

        patch = mock.patch('socket.getaddrinfo', here)
        patch.start()
        self.addCleanup(patch.stop)

    def test_all_is_well(self):
        chain, _ = self.get_crt(disable_check=False, check_port=str(self.web.port))
        self.assert_chain(chain, 'example.org')
        self.assertEqual([host for host, _ in self.web.hits],
                         ['example.org:%d' % self.web.port, 'example.org'])
        with mock.patch.dict(os.environ, http_proxy='http://127.0.0.1:1'):
            self.get_crt(disable_check=False, check_port=self.web.port)     # a number will do

    def test_not_there(self):
        with tempfile.TemporaryDirectory() as folder, Web(folder) as wrong:
            with self.assertRaises(ValueError) as caught:
                self.get_crt(disable_check=False, check_port=wrong.port)
            self.assertRegex(
                str(caught.exception), "^Wrote file to %s/[A-Za-z0-9_-]+, but couldn't download "
                "http://example.org:%d/.well-known/acme-challenge/[A-Za-z0-9_-]+: .*127.0.0.1.*404"
                % (self.path('challenges'), wrong.port))
        self.assertNotIn('challenge', [request.kind for request in self.ca.requests])

    def test_nobody_there(self):
        with self.assertRaisesRegex(ValueError, "couldn't download http://example.org:1/.*refused"):
            self.get_crt(disable_check=False, check_port='1')

    def test_a_drip_of_bytes(self):
        """The check has its time, whatever the web server does."""
        ended = threading.Event()
        self.addCleanup(ended.set)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    while not ended.wait(0.1):
                        self.request.sendall(b'H')

        with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self.addCleanup(server.shutdown)
            begun = time.monotonic()
            found = acme_tiny.self_check('http://127.0.0.1:%d/' % server.server_address[1], '', 1)
            self.assertIn('no answer in 1 seconds', found)
            self.assertLess(time.monotonic() - begun, 20)
            ended.set()

    def test_no_such_name(self):
        def nothing(*args, **options):
            raise socket.gaierror(-2, 'Name or service not known')

        real = socket.getaddrinfo
        with mock.patch('socket.getaddrinfo', lambda host, *args, **options: (
                nothing if host == 'example.org' else real)(host, *args, **options)):
            with self.assertRaisesRegex(ValueError, "couldn't download.*no address.*not known"):
                self.get_crt(disable_check=False, check_port=80)


if __name__ == '__main__':
    unittest.main()
