#!/usr/bin/env python3
"""Moving in from other clients: each gets a certificate from Pebble, then the commands of
examples/moving-in.md are run as they stand, and the line goes on with the same key and account.

    python3 tests/lab/moving_in.py [--install] [MovingIn.test]

Needs what tests/lab/pebble.py needs, and the clients: `--install` (as root) gets dehydrated and
lego from Debian; certbot and acme-tiny are in PEERS. acme.sh and the program of 2017 are in no
package, and Debian 12's uacme cannot talk to Pebble: their files are laid out as they have them.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.lab.pebble import Pebble, judge
from tests.world.line import CERTCHANGE, Line
from tests.world.support import ROOT, mode, read, spki, write

NAME = 'www.example.org'
PEERS = os.path.join(os.environ.get('PEERS', '/nowhere'), 'bin')
GUIDE = read(os.path.join(ROOT, 'examples', 'moving-in.md')).decode()
# Where the guide has the clients' files and ours, below a folder of the test's own.
PLACES = '/etc/', '/var/', '/root/'


def commands(section, folder):
    """The commands of a section, for files below a folder."""
    start = GUIDE.split('All sections begin')[1].split('\n## ')[0]
    text = GUIDE.split('\n## %s\n' % section)[1].split('\n## ')[0]
    lines = [line[4:] for line in (start + text).splitlines() if line.startswith('    ')]
    script = '\n'.join(lines)
    for place in PLACES:
        script = re.sub(r'(?<![\w.])' + place, folder + place, script)
    return script


class MovingIn(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pki = tempfile.TemporaryDirectory(prefix='moving-')
        cls.addClassCleanup(cls.pki.cleanup)
        cls.ca = Pebble(cls.pki.name).start()
        cls.addClassCleanup(cls.ca.stop)

    def setUp(self):
        place = tempfile.TemporaryDirectory(prefix='moving-')
        self.addCleanup(place.cleanup)
        self.folder = place.name

    def path(self, *parts):
        path = os.path.join(self.folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def client(self, *command, **env):
        """Run another client."""
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, cwd=self.folder, timeout=120, env={
                                  **os.environ, 'HOME': self.path('root', ''), **env})
        self.assertEqual(done.returncode, 0, done.stdout.decode('utf-8', 'replace'))

    def move_in(self, section):
        """Do what the guide says, and judge; `key`, `crt`, `account`: what the client had."""
        mark = self.ca.mark()
        done = subprocess.run(['sh', '-eu', '-c', commands(section, self.folder)], cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 0, done.stdout)
        keys, certs = [self.path('etc/ssl', *parts) for parts in (
            ('private/letsencrypt',), ('letsencrypt',))]
        self.assertEqual(mode(os.path.join(keys, 'live.key')) & 0o007, 0)
        before = spki(os.path.join(keys, 'live.key')), read(os.path.join(certs, 'live.crt'))
        self.go_on(keys, certs, before, mark)

    def go_on(self, keys, certs, before, mark):
        with Line(self.ca, web=False, domains=NAME, keys=keys, certs=certs,
                  account_key=os.path.join(keys, 'account.key'),
                  challenge_dir=self.ca.challenges, directory_url=self.ca.directory_url) as line:
            line.hook(CERTCHANGE)
            live = os.path.join(keys, 'live.key'), os.path.join(certs, 'live.crt')
            said = line.run('init', hooks=True, check=0).stdout
            self.assertNotIn('Obtaining', said)
            self.assertEqual(line.log(), [CERTCHANGE])
            self.assertRegex(line.run('-n', 'cron', check=0).stdout, '^Nothing; next: ')
            self.assertEqual((spki(live[0]), read(live[1])), before)
            self.assertNotIn('POST /order-plz', self.ca.requests(mark))
            # The same account: the CA knows its key
            account = line.run('account', check=0).stdout
            self.assertRegex(account, '^account: https://')
            log = read(self.ca.log)[mark:].decode()
            self.assertNotRegex(log, 'There are now [0-9]+ accounts')
            line.run('renew', check=0)
            self.assertEqual(spki(live[0]), before[0])
            self.assertNotEqual(read(live[1]), before[1])
            judge(self, read(live[1]), live[0], [NAME])
            return said

    def test_certbot(self):
        folder = self.path('etc/letsencrypt')
        self.client(
            os.path.join(PEERS, 'certbot'), 'certonly', '--non-interactive', '--agree-tos', '-m',
            'admin@example.org', '--server', self.ca.directory_url, '--webroot', '-w',
            self.ca.webroot, '-d', NAME, '--config-dir', folder, '--work-dir', self.path('work'),
            '--logs-dir', self.path('logs'), REQUESTS_CA_BUNDLE=self.ca.bundle)
        self.assertTrue(os.path.islink(os.path.join(folder, 'live', NAME, 'privkey.pem')))
        self.move_in('certbot')

    def test_dehydrated(self):
        folder = self.path('var/lib/dehydrated', '')
        config = write(self.path('config'), 'CA="%s"\nWELLKNOWN="%s"\nBASEDIR="%s"\n'
                       'CURL_OPTS="--cacert %s"\n' % (
                           self.ca.directory_url, self.ca.challenges, folder, self.ca.bundle))
        self.client('dehydrated', '-f', config, '--register', '--accept-terms')
        self.client('dehydrated', '-f', config, '-c', '-d', NAME)
        self.move_in('dehydrated')

    def test_lego(self):
        self.client('lego', '--server', self.ca.directory_url, '--email', 'admin@example.org',
                    '--accept-tos', '--path', self.path('root/.lego'), '--http', '--http.webroot',
                    self.ca.webroot, '-d', NAME, 'run', LEGO_CA_CERTIFICATES=self.ca.bundle)
        self.move_in('lego')

    def test_acme_tiny(self):
        account, domain = [self.path('etc/acme-tiny', name) for name in (
            'account.key', 'domain.key')]
        for key in account, domain:
            self.client('openssl', 'genrsa', '-out', key, '2048')
        self.client('openssl', 'req', '-new', '-key', domain, '-subj', '/', '-addext',
                    'subjectAltName = DNS:' + NAME, '-out', self.path('csr'))
        script = 'exec "$1" --account-key "$2" --csr "$3" --acme-dir "$4" --directory-url "$5" ' \
            '--disable-check > "$6"'
        self.client('sh', '-ec', script, 'sh', os.path.join(PEERS, 'acme-tiny'), account,
                    self.path('csr'), self.ca.challenges, self.ca.directory_url,
                    self.path('etc/acme-tiny/signed_chain.crt'), SSL_CERT_FILE=self.ca.bundle)
        self.move_in('acme-tiny')

    def test_acme_sh(self):
        """Its files, as it lays them out."""
        self.test_acme_tiny()
        shutil.rmtree(self.path('etc/ssl'))
        home = self.path('root/.acme.sh', NAME + '_ecc', '')
        shutil.copy(self.path('etc/acme-tiny/domain.key'), home + NAME + '.key')
        shutil.copy(self.path('etc/acme-tiny/signed_chain.crt'), home + 'fullchain.cer')
        shutil.copy(self.path('etc/acme-tiny/account.key'),
                    self.path('root/.acme.sh/ca/acme.example.net/directory/account.key'))
        self.move_in('acme.sh')

    def test_uacme(self):
        """Its files, as it lays them out: 1.7.4 cannot read all challenges that Pebble offers."""
        self.test_acme_tiny()
        shutil.rmtree(self.path('etc/ssl'))
        home = self.path('etc/ssl/uacme', '')
        shutil.copy(self.path('etc/acme-tiny/domain.key'),
                    self.path(home, 'private', NAME, 'key.pem'))
        shutil.copy(self.path('etc/acme-tiny/signed_chain.crt'), self.path(home, NAME, 'cert.pem'))
        shutil.copy(self.path('etc/acme-tiny/account.key'), self.path(home, 'private', 'key.pem'))
        self.move_in('uacme')

    def test_the_program_of_2017(self):
        """Keys that all can read, and a leaf without its chain: both are told."""
        self.test_acme_tiny()
        mark = self.ca.mark()
        keys, certs = self.path('2017/keys'), self.path('2017/certs')
        os.mkdir(keys), os.mkdir(certs)
        for source, target in (('domain.key', keys + '/live.key'),
                               ('account.key', keys + '/account.key')):
            shutil.copy(self.path('etc/acme-tiny', source), target)
            os.chmod(target, 0o644)
        chain = read(self.path('etc/acme-tiny/signed_chain.crt'))
        end = b'-----END CERTIFICATE-----\n'
        write(certs + '/live.crt', chain.split(end)[0] + end)
        said = self.go_on(keys, certs, (spki(keys + '/live.key'), read(certs + '/live.crt')), mark)
        self.assertIn('without its chain', said)
        self.assertEqual(said.count('readable for its owner only'), 2)
        self.assertEqual(mode(keys + '/live.key'), 0o600)


if __name__ == '__main__':
    if '--install' in sys.argv:
        sys.argv.remove('--install')
        subprocess.run(['apt-get', '-qq', 'install', '-y', '--no-install-recommends',
                        'dehydrated', 'lego'], check=True, env={
                            **os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})
        sys.exit()
    unittest.main()
