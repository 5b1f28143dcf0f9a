#!/usr/bin/env python3
"""Moving in from other clients: each gets a certificate from Pebble, then the commands of
examples/moving-in.md are run as they stand, and the line goes on with the same key and account.

    python3 tests/lab/moving_in.py [certbot dehydrated ...]
    python3 tests/lab/moving_in.py --install

The first is for these clients only; without names, for all, and for what can be wrong with what
somebody brings along. The second gets dehydrated, lego and uacme from Debian. Needs these, root,
what tests/lab/pebble.py needs, and certbot and acme-tiny in PEERS. acme.sh and the program of 2017
are in no package: their files are laid out by hand, as acme.sh 3.1.4 and the config of 2017 have
them, with keys and certificates of acme-tiny's.

The guide's commands are changed only where it sets variables to paths; the config is the sample.
"""
import contextlib
import glob
import http.client
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.lab.pebble import Pebble, judge
from tests.unit.test_config import OF_2017
from tests.world.support import (
    PATIENCE, PROGRAM, ROOT, Served, mode, openssl, read, spki, write)

NAME = 'www.example.org'
PEERS = os.path.join(os.environ.get('PEERS', '/nowhere'), 'bin')
PACKAGES = 'dehydrated', 'lego', 'uacme'
EXAMPLES = os.path.join(ROOT, 'examples')
GUIDE = read(os.path.join(EXAMPLES, 'moving-in.md')).decode()
DAY = 86400
END = b'-----END CERTIFICATE-----\n'


def commands(section, **variables):
    """The commands of a section, with other values for the variables that it sets."""
    text = GUIDE.split('\n## %s\n' % section)[1].split('\n## ')[0]
    lines = [line[4:] for line in text.splitlines() if line.startswith('    ')]
    for at, line in enumerate(lines):
        name, sign, value = line.partition('=')
        if sign and name in variables:
            lines[at] = '%s=%s' % (name, variables.pop(name))
    if variables:
        raise AssertionError('%s sets no %s' % (section, ', '.join(variables)))
    return lines


class Relay(Served):
    """A Pebble without the challenges that have no token (dns-persist-01): at these the uacme of
    Debian 12 gives up."""

    def __init__(self, ca):
        self.ca = ca

    def __enter__(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca.bundle, self.ca.config['privateKey'])
        super().__enter__()
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        return self

    def handler(self):
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_GET(self):
                sent = self.rfile.read(int(self.headers.get('Content-Length', 0)))
                status, headers, body = relay.ask(self, sent)
                self.send_response(status)
                for name in 'Content-Type', 'Link', 'Location', 'Replay-Nonce', 'Retry-After':
                    for value in headers.get_all(name, ()):
                        self.send_header(name, value)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command != 'HEAD' else b'')

            do_HEAD = do_POST = do_GET

            def log_message(self, *args):
                """Pebble has a log."""

        return Handler

    def ask(self, asked, sent):
        """Pebble's answer: status, headers, body."""
        connection = http.client.HTTPSConnection(
            '127.0.0.1', self.ca.port, timeout=PATIENCE,
            context=ssl.create_default_context(cafile=self.ca.bundle))
        with contextlib.closing(connection):
            connection.request(asked.command, asked.path, sent or None, {
                'Host': asked.headers['Host'], 'User-Agent': 'tests',
                'Content-Type': asked.headers.get('Content-Type', 'application/jose+json')})
            answer = connection.getresponse()
            body = answer.read()
        if 'json' in answer.headers.get('Content-Type', ''):
            data = json.loads(body)
            if 'challenges' in data:
                data['challenges'] = [one for one in data['challenges'] if 'token' in one]
                body = json.dumps(data).encode()
        return answer.status, answer.headers, body


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix='moving-in-')
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        # dehydrated does not ask again with another nonce.
        cls.ca = Pebble(os.path.join(cls.folder, 'ca'), {'PEBBLE_WFE_NONCEREJECT': '0'})
        cls.addClassCleanup(cls.ca.stop)
        cls.ca.start()

    def setUp(self):
        self.place = tempfile.mkdtemp(prefix='line-', dir=self.folder)
        self.addCleanup(shutil.rmtree, self.place)
        self.keys, self.certs = self.path('ssl/private/ours'), self.path('ssl/ours')
        self.key, self.crt = self.keys + '/live.key', self.certs + '/live.crt'
        self.account_key = self.keys + '/account.key'
        self.config = self.path('%s.conf' % NAME)
        program = ' '.join("'%s'" % word for word in PROGRAM)
        write(self.path('bin/letsencrypt-tiny'), '#!/bin/sh\nexec %s "$@"\n' % program, 0o755)
        write(self.path('cert-hook'), '#!/bin/sh\necho "$HOOK" >> %s\n' % self.path('hooks.log'),
              0o755)

    def path(self, *parts):
        """A path below the test's folder, whose folder is made."""
        path = os.path.join(self.place, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    # -- the clients

    def client(self, *command, **env):
        """Run another client; what it printed."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.place, timeout=PATIENCE, env={**os.environ, 'HOME': self.place, **env})
        said = done.stdout.decode('utf-8', 'replace')
        self.assertEqual(done.returncode, 0, said)
        return said

    def acme_tiny(self, folder):
        """Account key, key and chain in a folder, as acme-tiny's README has them; the account's
        URL."""
        account, domain, request = [os.path.join(folder, name) for name in (
            'account.key', 'domain.key', 'domain.csr')]
        for key in account, domain:
            write(key, openssl('genrsa', '-traditional', '2048'), 0o600)
        openssl('req', '-new', '-key', domain, '-subj', '/', '-addext',
                'subjectAltName = DNS:' + NAME, '-out', request)
        said = self.client(
            'sh', '-ec', 'out=$1; shift; exec "$@" > "$out"', 'sh', folder + '/signed_chain.crt',
            os.path.join(PEERS, 'acme-tiny'), '--account-key', account, '--csr', request,
            '--acme-dir', self.ca.challenges, '--directory-url', self.ca.directory_url,
            '--disable-check', SSL_CERT_FILE=self.ca.bundle)
        return re.search(r'Account ID: (\S+)', said)[1]

    # -- the guide

    def sh(self, lines, status=0):
        """Run commands where the guide's are run: in the project's folder; what they printed."""
        done = subprocess.run(
            ['sh', '-eu', '-c', '\n'.join(lines)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
            env={**os.environ, 'PATH': self.path('bin') + ':' + os.environ['PATH']})
        said = done.stdout.decode('utf-8', 'replace')
        self.assertEqual(done.returncode, status, said)
        self.assertNotIn('Traceback', said)
        return said

    def ours(self, *words, status=0):
        """Run our program."""
        return self.sh(['letsencrypt-tiny -c %s %s' % (self.config, ' '.join(words))], status)

    def write_config(self, **more):
        """The README's second step: the sample, with folders and the CA file of this test."""
        text = read(os.path.join(EXAMPLES, 'letsencrypt.conf')).decode()
        values = dict({
            'certs': self.certs, 'keys': self.keys, 'backups': self.path('backups'),
            'account-key': self.account_key, 'challenge-dir': self.ca.challenges,
            'post-certchange': self.path('cert-hook'), 'ca-bundle': self.ca.bundle,
            'self-check': 'no'}, **more)
        for name, value in values.items():
            text, count = re.subn(r'(?m)^#?(%s =) .*' % name, r'\1 ' + value, text)
            self.assertEqual(count, 1, name)
        write(self.config, text)

    def copy(self, section, old, ca=None):
        """Do what the guide says up to "After"."""
        self.write_config()
        self.sh(commands('Before', NAME=NAME, CA=ca or self.ca.directory_url, CONFIG=self.config,
                         CERTS=self.certs, KEYS=self.keys) + commands(section, OLD=old))

    def move_in(self, section, old, key, chain, account, ca=None):
        """Do what the guide says, for the client that has these files in the folder `old`, and the
        account of this URL."""
        then = time.time() - 40 * DAY
        os.utime(key, (then, then))
        mark = self.ca.mark()
        self.copy(section, old, ca)
        self.assertEqual(read(self.key), read(key))
        self.assertEqual(read(self.crt), read(chain))
        self.assertEqual(mode(self.crt), 0o644)
        self.assertEqual([mode(file) & 0o077 for file in (self.key, self.account_key)], [0, 0])
        self.assertLess(abs(os.stat(self.key).st_mtime - then), 1)
        self.go_on(commands('After'), ['CONFIG=' + self.config], account, mark)

    def go_on(self, after, variables, account, mark):
        """Our program takes over, without an order since mark; what it said."""
        before = read(self.key), read(self.crt)
        said = self.sh(variables + after)
        self.assertEqual(re.findall(r'(?m)^Nothing; next: (.*?),', said), [
            'Running post-certchange', "'live' is renewed"])
        self.assertNotIn('Obtaining', said)
        self.assertNotIn('Making account key', said)
        self.assertEqual(self.id_of(re.search(r'(?m)^account: (\S+)', said)[1]),
                         self.id_of(account))
        self.assertEqual((read(self.key), read(self.crt)), before)
        self.assertEqual(read(self.path('hooks.log')).decode(), 'post-certchange\n')
        self.assertEqual(self.ours('-k cron'), '')
        self.assertNotIn('POST /order-plz', self.ca.requests(mark))
        # and on with the same key and account
        self.ours('-k renew')
        self.assertIn('POST /order-plz', self.ca.requests(mark))
        self.assertEqual(read(self.key), before[0])
        self.assertNotEqual(read(self.crt), before[1])
        judge(self, read(self.crt), self.key, [NAME])
        self.assertIn(self.id_of(account), self.ours('account'))
        return said

    @staticmethod
    def id_of(account):
        """What of an account's URL is not the address of Pebble or of the relay."""
        return account.partition('/my-account/')[2] or account


class MovingIn(Case):
    def test_certbot(self):
        old = self.path('letsencrypt')
        self.client(
            os.path.join(PEERS, 'certbot'), 'certonly', '--non-interactive', '--agree-tos', '-m',
            'admin@example.org', '--server', self.ca.directory_url, '--webroot', '-w',
            self.ca.webroot, '-d', NAME, '--config-dir', old, '--work-dir', self.path('work'),
            '--logs-dir', self.path('logs'), REQUESTS_CA_BUNDLE=self.ca.bundle)
        # Two accounts of others, of which it keeps any number
        account, = glob.glob(old + '/accounts/*/*/*')
        for other in 'f' * 32, '../../acme.example/directory/' + '0' * 32:
            write(self.path(os.path.dirname(account), other, 'private_key.json'), '{}')
        live = os.path.join(old, 'live', NAME)
        self.assertTrue(os.path.islink(live + '/privkey.pem'))
        self.move_in('certbot', old, live + '/privkey.pem', live + '/fullchain.pem',
                     json.loads(read(account + '/regr.json'))['uri'])
        self.assertFalse(os.path.islink(self.key))

    def test_dehydrated(self):
        old = self.path('dehydrated')
        config = write(self.path('config'), ''.join('%s="%s"\n' % item for item in {
            'CA': self.ca.directory_url, 'WELLKNOWN': self.ca.challenges, 'BASEDIR': old,
            'CURL_OPTS': '--cacert ' + self.ca.bundle, 'ACCOUNT_KEYSIZE': 2048}.items()))
        os.mkdir(old)
        self.client('dehydrated', '-f', config, '--register', '--accept-terms')
        self.client('dehydrated', '-f', config, '-c', '-d', NAME)
        account, = glob.glob(old + '/accounts/*')
        write(self.path(old, 'accounts/other/account_key.pem'))
        live = os.path.join(old, 'certs', NAME)
        self.assertTrue(os.path.islink(live + '/privkey.pem'))
        self.move_in('dehydrated', old, live + '/privkey.pem', live + '/fullchain.pem',
                     json.loads(read(account + '/account_id.json'))['url'])

    def test_lego(self):
        old = self.path('.lego')
        self.client('lego', '--server', self.ca.directory_url, '--email', 'admin@example.org',
                    '--accept-tos', '--path', old, '--http', '--http.webroot', self.ca.webroot,
                    '-d', NAME, 'run', LEGO_CA_CERTIFICATES=self.ca.bundle)
        account, = glob.glob(old + '/accounts/*/*')
        write(self.path(old, 'accounts/acme.example/admin@example.org/keys/admin@example.org.key'))
        live = os.path.join(old, 'certificates', NAME)
        self.move_in('lego', old, live + '.key', live + '.crt',
                     json.loads(read(account + '/account.json'))['registration']['uri'])

    def test_uacme(self):
        old = self.path('uacme')
        hook = write(self.path('hook'), '#!/bin/sh\n[ "$2" = http-01 ] || exit 1\ncase $1 in\n'
                     'begin) printf %%s "$5" > %s/"$4" ;;\n*) rm -f %s/"$4" ;;\nesac\n' % (
                         self.ca.challenges, self.ca.challenges), 0o755)
        with Relay(self.ca) as relay:
            # It cannot be told which CA file to trust: that of the system is another one for it.
            uacme = ['unshare', '--mount', 'sh', '-ec', 'mount --bind "$0" "$1"; shift; exec "$@"',
                     self.ca.bundle, '/etc/ssl/certs/ca-certificates.crt', 'uacme', '-v', '-y',
                     '-c', old, '-h', hook, '-a', 'https://127.0.0.1:%d/dir' % relay.port]
            said = self.client(*uacme, 'new')
            self.client(*uacme, 'issue', NAME)
        self.move_in('uacme', old, os.path.join(old, 'private', NAME, 'key.pem'),
                     os.path.join(old, NAME, 'cert.pem'),
                     re.search(r'account created at (\S+)', said)[1])

    def test_acme_tiny(self):
        old = self.path('acme-tiny', '')
        account = self.acme_tiny(old)
        self.move_in('acme-tiny', old, old + 'domain.key', old + 'signed_chain.crt', account)

    def test_acme_sh(self):
        """Its files, as it lays them out. (It leaves the port out, which no real CA has.)"""
        made = self.path('made', '')
        account = self.acme_tiny(made)
        old, live = self.path('.acme.sh'), self.path('.acme.sh', NAME + '_ecc', '')
        chain = read(made + 'signed_chain.crt')
        write(live + NAME + '.key', read(made + 'domain.key'), 0o600)
        write(live + NAME + '.cer', chain.split(END)[0] + END)
        write(live + 'fullchain.cer', chain)
        host = 'ca/%s/' % self.ca.directory_url.split('//')[1]
        write(self.path(old, host + 'account.key'), read(made + 'account.key'), 0o600)
        write(self.path(old, 'ca/acme.zerossl.com/v2/DV90/account.key'))
        self.move_in('acme.sh', old, live + NAME + '.key', live + 'fullchain.cer', account)

    def test_2017(self):
        """Its config, with RSA keys that all can read, a leaf without its chain, and what it left
        when it was killed."""
        made = self.path('made', '')
        account = self.acme_tiny(made)
        chain = read(made + 'signed_chain.crt')
        text = OF_2017 % ((self.place,) * OF_2017.count('%s'))
        text = text.replace('  example.org\n', '').replace('4096', '2048')   # which takes long
        text = re.sub('(?m)^(certs|keys|account-key|challenge-dir) = .*', lambda found: (
            '%s = %s' % (found[1], {
                'certs': self.certs, 'keys': self.keys, 'account-key': self.account_key,
                'challenge-dir': self.ca.challenges}[found[1]])), text)
        write(self.config, 'directory-url = %s\nca-bundle = %s\nself-check = no\n%s' % (
            self.ca.directory_url, self.ca.bundle, text))
        for folder in self.keys, self.certs:
            os.makedirs(folder)
        write(self.key, read(made + 'domain.key'), 0o644)
        write(self.account_key, read(made + 'account.key'), 0o644)
        write(self.crt, chain.split(END)[0] + END)
        write(self.crt + '.csr.tmp', 'left')
        mark = self.ca.mark()
        said = self.go_on(commands('After'), commands(
            'lets-encrypt-tiny of 2017', CONFIG=self.config), account, mark)
        for file in self.key, self.account_key:
            self.assertIn('Making %s readable for its owner only\n' % file, said)
            self.assertEqual(mode(file), 0o600)
        self.assertIn('without its chain', said)


class WrongAdoptions(Case):
    """What somebody may bring along, and what is said of it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = os.path.join(cls.folder, 'made', '')

    def setUp(self):
        super().setUp()
        if not os.path.exists(self.made):
            os.mkdir(self.made)
            self.acme_tiny(self.made)
        self.copy('acme-tiny', self.made)
        self.mark = self.ca.mark()

    def ordered(self):
        return 'POST /order-plz' in self.ca.requests(self.mark)

    def first(self, *said):
        """`-n cron` before init tells this, and nothing happens."""
        told = self.ours('-n cron')
        for words in said:
            self.assertIn(words, told)
        self.assertFalse(self.ordered())

    def test_nothing_wrong(self):
        self.first('Nothing; next: ')
        said = self.ours('-k init')
        self.assertNotIn('readable', said)
        self.assertNotIn('without', said)
        self.assertFalse(self.ordered())

    def test_leaf_without_chain(self):
        leaf = read(self.crt).split(END)[0] + END
        write(self.crt, leaf)
        self.first('Nothing; next: ')
        self.assertIn(', without its chain.', self.ours('-k init'))
        self.assertEqual(read(self.crt), leaf)
        self.first("Nothing; next: 'live' is renewed")
        self.ours('-k renew')
        judge(self, read(self.crt), self.key, [NAME])

    def test_key_that_others_can_read(self):
        os.chmod(self.key, 0o644)
        self.assertIn('Making %s readable for its owner only\n' % self.key, self.ours('-k init'))
        self.assertEqual(mode(self.key), 0o600)
        self.assertFalse(self.ordered())

    def test_key_that_a_group_can_read(self):
        """That may be wanted (see the README), and new keys get it, too."""
        os.chown(self.key, 0, 1)
        os.chmod(self.key, 0o640)
        self.assertIn('can be read by its group (1)', self.ours('-k init'))
        self.ours('-k renew --new-key --now')
        self.assertEqual((mode(self.key), os.stat(self.key).st_gid), (0o640, 1))

    def test_links(self):
        """They work and are told; the first renewal ends that of the certificate, a new key
        that of the key, and the old client's files stay as they are."""
        old = {}
        for file in self.key, self.crt:
            target = self.path('old', os.path.basename(file))
            os.rename(file, target)
            os.symlink(target, file)
            old[target] = read(target)
        self.first('Nothing; next: ')
        said = self.ours('-k init')
        for target in old:
            self.assertIn('is a link: who changes %s ' % target, said)
        self.first("Nothing; next: 'live' is renewed")
        self.assertTrue(os.path.islink(self.key) and os.path.islink(self.crt))
        self.ours('-k renew')
        self.assertFalse(os.path.islink(self.crt))
        self.assertTrue(os.path.islink(self.key))
        self.ours('-k renew --new-key --now')
        self.assertFalse(os.path.islink(self.key))
        self.assertEqual(spki(self.key), spki(self.crt))
        self.assertEqual({file: read(file) for file in old}, old)

    def test_key_that_is_too_old(self):
        then = time.time() - 300 * DAY
        os.utime(self.key, (then, then))
        self.first("Making a new private key 'staging'", 'the live key is 300 days old')

    def test_other_names(self):
        self.write_config(**{'directory-url': self.ca.directory_url})
        text = read(self.config).decode()
        write(self.config, text.replace('  ' + NAME, '  %s example.org' % NAME))
        self.first('Obtaining certificate', 'it has other names')

    def test_key_of_another_certificate(self):
        write(self.key, openssl('genrsa', '2048'), 0o600)
        self.first('Obtaining certificate', 'there is none for this key')

    def test_account_key_that_is_a_jwk(self):
        """As it happens if certbot's is copied: "After" stops at its first command."""
        write(self.account_key, '{"kty": "RSA"}', 0o600)
        said = self.sh(['CONFIG=' + self.config] + commands('After'), status=1)
        self.assertEqual(said.count('\n'), 1, said)
        self.assertIn('it is a JWK, as certbot keeps its account keys', said)

    def test_account_key_of_another_user(self):
        os.chown(self.account_key, 1, 1)
        said = self.sh(['CONFIG=' + self.config] + commands('After'), status=1)
        self.assertIn(self.account_key + ' must be owned by root', said)


if __name__ == '__main__':
    if '--install' in sys.argv:
        subprocess.run(['apt-get', '-qq', 'install', '--no-install-recommends', '--no-upgrade',
                        *PACKAGES], check=True,
                       env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})
        sys.exit()
    unittest.main(argv=sys.argv[:1] + [
        word if re.match('-|MovingIn|WrongAdoptions', word) else
        'MovingIn.test_' + re.sub(r'\W', '_', word) for word in sys.argv[1:]])
