"""The config file: what is taken, what is refused, and that a refusal comes before any deed."""
import importlib.util
import os
import shutil
import subprocess
import sys
import unicodedata
import unittest

from letsencrypt_tiny import Problem, read_config
from tests.fake_ca import FakeCA
from tests.support import PATIENCE, PROGRAM, only_if
from tests.test_commands import Line

# Runs one command for each config file, as if each were the only one, in one process.
EACH = r'''
import os, runpy, sys
program, command, *files = sys.argv[1:]
main = runpy.run_path(program)["main"]
for file in files:
    try:
        status = main(["-c", file] + command.split())
    except Exception as error:
        os.write(2, ("letsencrypt-tiny: %s: TRACEBACK %r\n" % (file, error)).encode())
        status = -1
    os.write(2, b"= %d\n" % status)
'''
BASE = {'domains': 'example.org', 'max_key_age_days': 365, 'account_key': '/x/account.key',
        'challenge_dir': '/x/challenges', 'certs': '/x/certs', 'keys': '/x/keys',
        'backups': '/x/backups'}

# The config of the article of 2017, paths apart; `%s` is the folder.
OF_2017 = '''\
# The domains currently making up this certificate line:
domains =
  example.org
  www.example.org

# The size of the RSA secret key (in bits).
key-length = 4096

# Max. age of the private key before we generate a new one.
max-key-age-days = 256
# How long a new private key is "staged" before it is used as the live key.
# 0 disables staging.
staging-hours = 0
# How many days before the certificate expires should be request a new one?
renew-cert-before-expiry-days = 15

# Script to execute after the certificate changed.
post-certchange = %s/cert-hook
# Script to execute after the key changed.  Only needed when using DNSSEC+TLSA.
#post-keychange = %s/key-hook

# File storing the ACME account private key (created if missing).
account-key = %s/account.key
# Directory to put the ACME challenges into.  Must be mapped to
# /.well-known/acme-challenge on all domains listed above.
challenge-dir = %s/acme-challenge/

# Directory for certificates.
certs = %s/mycerts
# Directory for private keys.
keys = %s/private
# A place to put old certificates and keys.
backups = %s/old

# Filename prefix (without extension) for the live key and certificate.
live = live
# Filename prefix (without extension) for the staging key and certificate.
staging = staging
'''

# key -> a part of what must be said to be expected, wrong values
NUMBERS = ['', 'abc', '-1', 'nan', '-nan', 'inf', '-inf', '1e999', '9' * 400, '1,5', '5 days',
           '0x10', '%d', '99999999']
PATHS = ['', 'relative/file', './file', '~/file', '~root/file', 'file', '/with\a/bell',
         '/with/\u202ebidi']
SERVERS = ['dns.example.org', '127.0.0.1:53', '127.0.0.1@', '127.0.0.1@dns', '127.0.0.1@99999',
           '300.0.0.1', 'dead', '127.0.0.1@-1']
WRONG = {
    'domains': ('host name', [
        '', '-a.example', 'a-.example', 'a_b.example', 'a..example', '.example', 'example.',
        '127.0.0.1', '::1', '*.example.org', 'x' * 64 + '.example', '.'.join(['x' * 60] * 5),
        'https://example.org', 'example.org:443', 'example.org/', 'me@example.org', 'a%b.example',
        'example.org, www.example.org', 'example.org # a comment', '"example.org"',
        ' '.join('n%d.example.org' % n for n in range(101))]),
    'key-type': ('rsa, ec-p256 or ec-p384', ['', 'ecdsa', 'ec-p521', 'rsa ec-p256', 'rsa4096']),
    'key-length': ('2048 to 4096', [
        '', '1024', '2047', '4097', '16384', '-2048', '0', 'nan', 'inf', '2048.5', '3e3', '0xc00',
        'rsa', '4096 bits', '9' * 5000]),
    'max-key-age-days': ('days', NUMBERS + ['0', '0.0', '-0']),
    'staging-hours': ('hours', NUMBERS),
    'renew-cert-before-expiry-days': ('days', NUMBERS + ['0']),
    'hook-timeout': ('seconds', NUMBERS + ['0']),
    'post-certchange': ('absolute path', PATHS),
    'post-keychange': ('absolute path', PATHS),
    'account-key': ('absolute path', PATHS),
    'challenge-dir': ('absolute path', PATHS),
    'certs': ('absolute path', PATHS),
    'keys': ('absolute path', PATHS),
    'backups': ('absolute path', PATHS),
    'ca-bundle': ('absolute path', PATHS),
    'live': ('prefix', ['', 'a/b', '../live', '.live', '.', '..', '/live', 'two words']),
    'staging': ('prefix', ['', 'a/b', '../staging', '.staging', 'two words']),
    'directory-url': ('https', [
        '', 'http://ca.example/dir', 'ftp://ca.example/dir', 'file:///etc/passwd', 'ca.example',
        'https://', 'https:/ca.example/dir', 'https://ca.example/a b', 'https://b\u00fccher/']),
    'contact': ('mail address', ['nobody', '@example.org', 'me@', 'a@b@c', 'mailto:', 'tel:+123',
                                 'me@example.org?subject=x', 'me@example.org you']),
    'proxy': ('URL', ['', 'proxy:3128', 'socks5://proxy:1080', 'ftp://proxy', 'http://']),
    'self-check': ('no, warn or require', ['', 'yes', 'true', '1', 'no warn']),
    'tlsa': ('_25._tcp', ['mx.example.org', '_25.mx.example.org', '25._tcp.mx.example.org',
                          '_25._icmp.mx.example.org', '_x._tcp.mx.example.org', '_25._tcp.',
                          '_25._tcp.mx.example.org _443._tcp']),
    'dns-resolver': ('address@port', SERVERS + ['', '127.0.0.1 127.0.0.2']),
    'dns-servers': ('address@port', SERVERS),
    'served': ('host:port', ['mx.example.org', ':25', 'mx.example.org:', 'mx.example.org:smtp',
                             'mx.example.org:25/', 'mx.example.org:25/SMTP!', 'mx:99999'])}

# Names on which IDNA 2003 and 2008 differ, or that 2008 does not know.
UNCLEAR = ['stra\u00dfe.example', 'stra\u1e9ee.example',
           '\u03b2\u03cc\u03bb\u03bf\u03c2.example',
           '\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example',
           '\u0dc1\u0dca\u200d\u0dbb\u0dd3.example', '\u2603.example', 'i\u2764.example',
           '\U0001f4a9.example', 'a\u2260b.example']
CLEAR = {'b\u00fccher.example': 'xn--bcher-kva.example',
         'B\u00dcCHER.Example': 'xn--bcher-kva.example',
         'bu\u0308cher.example': 'xn--bcher-kva.example',
         'm\u00fcnchen.b\u00fccher.example': 'xn--mnchen-3ya.xn--bcher-kva.example',
         '\u4f8b\u3048.example': 'xn--r8jz45g.example',
         '\u043f\u0440\u0438\u043c\u0435\u0440.example': 'xn--e1afmkfd.example',
         '\u03c0\u03b1\u03c1\u03ac\u03b4\u03b5\u03b9\u03b3\u03bc\u03b1.example':
             'xn--hxajbheg2az3al.example',
         '\u05d3\u05d5\u05d2\u05de\u05d4.example': 'xn--6dbbec0c.example'}


def text(**options):
    """A flat config of BASE with these options (None: left out)."""
    return ''.join('%s = %s\n' % (key.replace('_', '-'), value)
                   for key, value in dict(BASE, **options).items() if value is not None)


class Case(unittest.TestCase):
    def setUp(self):
        self.line = Line(web=False).__enter__()
        self.addCleanup(self.line.__exit__)

    def write(self, content, name='test.conf'):
        """Write a config file (str or bytes) and return its path."""
        path = self.line.path(name)
        data = content if isinstance(content, bytes) else content.encode('utf-8', 'surrogateescape')
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def read(self, content):
        return read_config(self.write(content))

    def each(self, contents, command='status'):
        """[(exit status, stderr)] of a command for each of these config texts."""
        files = [self.write(content, 'c%03d.conf' % count)
                 for count, content in enumerate(contents)]
        done = subprocess.run([*PROGRAM[:2], '-c', EACH, PROGRAM[2], command, *files],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
                              timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stdout), (0, ''), done.stderr)
        found, lines = [], []
        for line in done.stderr.splitlines():
            if line.startswith('= '):
                found.append((int(line[2:]), lines))
                lines = []
            else:
                lines.append(line)
        self.assertEqual(len(found), len(files))
        for file, (_, lines) in zip(files, found):
            for line in lines:
                self.assertTrue(line.startswith('letsencrypt-tiny: %s: ' % file), line)
        return [(status, '\n'.join(line.partition('.conf: ')[2] for line in lines))
                for status, lines in found]

    def check_refused(self, rows, command='status'):
        """rows: [(config text, parts that the one line on stderr must hold)]"""
        for (content, parts), (status, said) in zip(
                rows, self.each([row[0] for row in rows], command)):
            with self.subTest(changed=set(content.splitlines()) - set(text().splitlines())):
                self.assertEqual(status, 2, said)
                self.assertEqual(len(said.splitlines()), 1, said)
                self.assertTrue(said.isprintable(), said)
                for part in parts:
                    self.assertIn(part, said)


class Accepted(Case):
    def test_flat_config_of_2017(self):
        config = self.read(OF_2017.replace('%s', '/srv'))
        self.assertEqual(config.domains, ['example.org', 'www.example.org'])
        self.assertEqual((config.key_type, config.key_length), ('rsa', 4096))
        self.assertEqual((config.max_key_age_days, config.staging_hours,
                          config.renew_cert_before_expiry_days), (256, 0, 15))
        self.assertEqual((config.post_certchange, config.post_keychange),
                         ('/srv/cert-hook', None))
        self.assertEqual((config.account_key, config.challenge_dir),
                         ('/srv/account.key', '/srv/acme-challenge'))
        self.assertEqual((config.certs, config.keys, config.backups, config.live, config.staging),
                         ('/srv/mycerts', '/srv/private', '/srv/old', 'live', 'staging'))
        self.assertTrue(config.directory_url.startswith('https://acme-v02.api.letsencrypt.org/'))

    def test_sectioned_config(self):
        flat = OF_2017.replace('%s', '/srv')
        moved = flat
        for key, section in (('max-key-age-days', 'timing'), ('post-certchange', 'hooks'),
                             ('account-key', 'acme'), ('certs', 'dirs'), ('live', 'files')):
            moved = moved.replace('\n%s =' % key, '\n[%s]\n%s =' % (section, key))
        self.assertEqual(moved.count('\n['), 5)
        self.assertEqual(self.read(moved), self.read(flat))

    def test_any_key_in_any_section(self):
        lines = text().splitlines(True)
        for section in '[acme]\n', '[DEFAULT]\n', '[whatever you like]\n':
            self.assertEqual(self.read(section + ''.join(lines)).keys, '/x/keys')
        self.assertEqual(self.read('\n[a]\n'.join(lines)), self.read(text()))

    def test_lines_comments_and_spaces(self):
        plain = self.read(text(domains='a.example b.example c.example'))
        body = text(domains=None)
        for domains in ('domains = a.example b.example\n  c.example\n',
                        'domains =\n  a.example\n\n  # not this one\n  b.example\n;\n  c.example\n',
                        'domains=a.example\n\tb.example\n\n\n\tc.example\n',
                        'DOMAINS: a.example b.example\tc.example\n',
                        '  domains   =   a.example\n    b.example\n     c.example\n',
                        '# domains = z.example\n; domains = y.example\n'
                        'domains = a.example b.example c.example\n'):
            with self.subTest(domains):
                self.assertEqual(self.read(domains + body), plain)
                self.assertEqual(self.read(body + '[x]\n' + domains), plain)
                self.assertEqual(self.read((domains + body).replace('\n', '\r\n')), plain)
                self.assertEqual(self.read((domains + body).rstrip('\n')), plain)

    def test_byte_order_mark(self):
        plain = self.read(text())
        self.assertEqual(self.read(b'\xef\xbb\xbf' + text().encode()), plain)
        self.assertEqual(self.read(b'\xef\xbb\xbf[acme]\r\n' + text().encode()), plain)

    def test_percent_signs_are_nothing_special(self):
        config = self.read(text(directory_url='https://ca.example/%(here)s/%20?%d',
                                post_certchange='/opt/100%/%%hook', certs='/x/%s'))
        self.assertEqual(config.directory_url, 'https://ca.example/%(here)s/%20?%d')
        self.assertEqual((config.post_certchange, config.certs), ('/opt/100%/%%hook', '/x/%s'))

    def test_paths(self):
        config = self.read(text(certs='/x//certs///', keys='/my keys/of \u00fc', backups='/'))
        self.assertEqual((config.certs, config.keys, config.backups),
                         ('/x/certs', '/my keys/of \u00fc', '/'))

    def test_names_are_lower_case_and_once(self):
        config = self.read(text(domains='WWW.Example.org example.ORG www.example.org a.example.org '
                                'xn--bcher-kva.example b\u00fccher.example'))
        self.assertEqual(config.domains, ['www.example.org', 'example.org', 'a.example.org',
                                          'xn--bcher-kva.example'])
        names = ['n%d.example.org' % n for n in range(100)]
        self.assertEqual(self.read(text(domains=' '.join(names))).domains, names)
        self.assertEqual(len(self.read(text(domains='x' * 63 + '.example')).domains), 1)

    def test_numbers(self):
        for value, wanted in (('0.5', .5), ('1e-3', .001), ('.25', .25), ('36500', 36500),
                              ('+7', 7)):
            self.assertEqual(self.read(text(max_key_age_days=value)).max_key_age_days, wanted)
        self.assertEqual(self.read(text(staging_hours='0.01')).staging_hours, .01)

    def test_kind_of_key(self):
        for kind, length, wanted in (
                (None, None, ('ec-p256', None)), (None, 4096, ('rsa', 4096)),
                ('rsa', None, ('rsa', None)), ('rsa', 2048, ('rsa', 2048)),
                ('ec-p384', None, ('ec-p384', None)), ('ec-p256', None, ('ec-p256', None))):
            config = self.read(text(key_type=kind, key_length=length))
            self.assertEqual((config.key_type, config.key_length), wanted)

    def test_the_rest(self):
        config = self.read(text(
            staging_hours=48, contact='me@example.org, mailto:you@example.org',
            proxy='http://proxy.example.org:3128', self_check='require', ca_bundle='/x/ca.pem',
            tlsa='_25._tcp.mx.example.org _443._tcp.example.org', dns_resolver='127.0.0.1@5353',
            dns_servers='192.0.2.1 2001:db8::1@53',
            served='mx.example.org:25/smtp example.org:443'))
        self.assertEqual(config.contact, ['mailto:me@example.org', 'mailto:you@example.org'])
        self.assertEqual(config.tlsa, ['_25._tcp.mx.example.org', '_443._tcp.example.org'])
        self.assertEqual(config.dns_servers, ['192.0.2.1', '2001:db8::1@53'])
        self.assertEqual(config.served, ['mx.example.org:25/smtp', 'example.org:443'])


class Refused(Case):
    def test_every_wrong_value(self):
        rows = [(text(**{key.replace('-', '_'): value}), [key, expected])
                for key, (expected, values) in WRONG.items() for value in values]
        self.assertGreater(len(rows), 200)
        self.check_refused(rows)

    def test_wildcards_are_explained(self):
        self.check_refused([(text(domains='example.org *.example.org'),
                             ['*.example.org', 'wildcard', 'dns-01'])])

    def test_unclear_international_names(self):
        self.check_refused([(text(domains='example.org ' + name), ['domains', 'A-label'])
                            for name in UNCLEAR])

    def test_unknown_key_with_suggestion(self):
        rows = [('domain', 'domains'), ('max-key-age', 'max-key-age-days'),
                ('max_key_age_days', 'max-key-age-days'), ('stagging-hours', 'staging-hours'),
                ('post-cert-change', 'post-certchange'), ('post-key-change', 'post-keychange'),
                ('keylength', 'key-length'), ('backup', 'backups'), ('acount-key', 'account-key'),
                ('directory_url', 'directory-url'), ('selfcheck', 'self-check'),
                ('renew-before-expiry-days', 'renew-cert-before-expiry-days')]
        self.check_refused([(text() + '%s = 1\n' % key, [key, 'unknown', near + '?'])
                            for key, near in rows])
        self.check_refused([(text() + '%s = 1\n' % key, ['unknown'])
                            for key in ('xyzzy', '100%', '\u00fc', '\u202ekeys')])

    def test_key_twice(self):
        rows = [(text() + 'keys = /y\n', ['keys', 'twice']),
                (text() + 'keys = /x/keys\n', ['keys', 'twice']),
                (text() + '[dirs]\nkeys = /y\n', ['keys', 'twice']),
                ('[a]\nkeys = /y\n[b]\n' + text(), ['keys', 'twice']),
                (text() + 'KEYS = /y\n', ['KEYS', 'twice'])]
        self.check_refused(rows)

    def test_missing_required(self):
        self.check_refused([(text(**{key: None}), [key.replace('_', '-'), 'missing'])
                            for key in BASE] + [('', ['domains', 'missing']),
                                                ('# nothing\n[acme]\n', ['domains', 'missing'])])

    def test_combinations(self):
        self.check_refused([
            (text(key_type='ec-p256', key_length=2048), ['key-length', 'ec-p256']),
            (text(key_type='ec-p384', key_length=4096), ['key-length', 'ec-p384']),
            (text(tlsa='_25._tcp.mx.example.org'), ['staging-hours', 'tlsa']),
            (text(tlsa='_25._tcp.mx.example.org', staging_hours=0), ['staging-hours', 'tlsa']),
            (text(live='same', staging='same'), ['live', 'staging']),
            (text(account_key='/x/keys/live.key'), ['account-key']),
            (text(account_key='/x//keys/staging.key'), ['account-key'])])

    def test_text_that_is_no_config(self):
        self.check_refused([
            ('what is this\n' + text(), ['line 1', 'key = value']),
            (text() + '[never closed\n', ['line 8', 'key = value']),
            (text() + '= 5\n', ['line 8', 'key = value']),
            (text() + 'keys\n', ['line 8', 'key = value'])])
        umlaut = '# f\u00fcr'
        rows = [umlaut.encode('latin-1') + b'\n' + text().encode(), text().encode('utf-16'),
                b'\xff' + text().encode(), b'\x30\x82\x01\xff\xfe']
        for status, said in self.each(rows):
            self.assertEqual(status, 2, said)
            self.assertIn('UTF-8', said)

    def test_one_name_is_shown_as_it_is(self):
        """What is wrong is shown, but a terminal is not led astray."""
        (status, said), = self.each([text(contact='\u202eme\x1b[2J')])
        self.assertEqual(status, 2)
        self.assertIn('\\u202eme\\x1b[2J', said)

    def test_real_process_exits_2(self):
        self.line.set(max_key_age_days='soon')
        for command in 'init', 'cron', 'renew', 'status':
            done = self.line.run(command, check=2)
            self.assertEqual(done.stdout, '')
            self.assertIn('%s: max-key-age-days: expected' % self.line.config, done.stderr)
        self.line.run('cron', '-n', check=2)


@only_if(importlib.util.find_spec('idna'))
class Idna(unittest.TestCase):
    """As the package `idna` sees it, which follows IDNA 2008."""

    def setUp(self):
        import idna
        self.idna = idna
        self.line = Line(web=False).__enter__()
        self.addCleanup(self.line.__exit__)

    def accepted(self, name):
        """The A-labels that the program makes of a name, None if it refuses."""
        with open(self.line.path('test.conf'), 'w', encoding='utf-8') as file:
            file.write(text(domains=name))
        try:
            return read_config(file.name).domains[0]
        except Problem:
            return None

    def test_what_is_accepted_is_what_idna_2008_makes_of_it(self):
        some = [letter for code in (*range(0xa1, 0x180), *range(0x370, 0x460),
                                    *range(0x1e90, 0x1ea0), *range(0x3041, 0x3060))
                for letter in [chr(code)] if unicodedata.category(letter)[0] in 'LN']
        wrong = []
        for name in ['a%sb.example' % letter for letter in some] + list(CLEAR) + UNCLEAR:
            found = self.accepted(name)
            try:
                wanted = self.idna.encode(name, uts46=True, transitional=False).decode()
            except self.idna.IDNAError:
                continue        # such as a mixture of directions: for the CA to refuse
            if found is not None and found != wanted:
                wrong.append((name, found, wanted))
        self.assertEqual(wrong, [])


class Sent(unittest.TestCase):
    def test_a_labels_are_sent(self):
        with FakeCA() as ca, Line(ca, domains=list(CLEAR) + ['EXAMPLE.org']) as line:
            line.run('init', check=0)
            wanted = list(dict.fromkeys([*CLEAR.values(), 'example.org']))
            self.assertEqual(ca.orders[0].names, wanted)
            ca.clear()
            self.assertEqual(line.run('cron', check=0).stdout, '')
            self.assertEqual(ca.requests, [])


class Untouched(unittest.TestCase):
    def setUp(self):
        self.ca = FakeCA().start()
        self.addCleanup(self.ca.stop)
        self.line = Line(self.ca).__enter__()
        self.addCleanup(self.line.__exit__)

    def files(self):
        return sorted(os.path.join(folder, name) for folder, folders, files in os.walk(
            self.line.folder.name) for name in folders + files)

    def check_nothing(self, command, status, *parts, **options):
        before = self.files(), self.line.snapshot()
        done = self.line.run(*command, **options)
        self.assertEqual((done.returncode, done.stdout), (status, ''), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn('letsencrypt-tiny: %s: ' % self.line.config, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)
        self.assertEqual((self.files(), self.line.snapshot()), before)
        self.assertEqual((self.ca.connections, self.line.web.hits), (0, []))


class NothingDone(Untouched):
    """An error in the config or the machine comes before anything is made or asked."""

    def test_wrong_config(self):
        for wrong in ({'self_check': 'perhaps'}, {'domains': '*.example.org'},
                      {'backups': 'backups'}, {'keys': None}, {'stagging_hours': 3}):
            self.line.set(**wrong)
            self.check_nothing(['init'], 2, next(iter(wrong)).replace('_', '-'))
            self.line.set(self_check='no', domains='example.org', keys=self.line.path('keys'),
                          backups=self.line.path('backups'), stagging_hours=None)
        self.line.run('init', check=0)      # the rest was right

    def test_no_openssl(self):
        os.mkdir(self.line.path('bin'))
        for command in 'init', 'renew', 'cron':
            self.check_nothing([command], 1, 'openssl', env={'PATH': self.line.path('bin')})

    def test_config_that_cannot_be_read(self):
        os.rename(self.line.config, self.line.path('away'))
        self.check_nothing(['init'], 1, 'No such file')
        os.mkdir(self.line.config)
        self.check_nothing(['init'], 1, 'directory')
        os.rmdir(self.line.config)
        os.symlink('line.conf', self.line.config)
        done = self.line.run('init', check=1)
        self.assertIn('symbolic link', done.stderr)
        os.unlink(self.line.config)
        os.rename(self.line.path('away'), self.line.config)

    @only_if(os.geteuid())      # root may read everything
    def test_config_without_permission(self):
        os.chmod(self.line.config, 0)
        done = self.line.run('init', check=1)
        self.assertIn('Permission denied', done.stderr)

    def test_folder_missing(self):
        self.check_nothing(['cron'], 1, self.line.path('certs'), 'init')
        for name in 'certs', 'keys', 'backups':
            os.mkdir(self.line.path(name))
        for name in 'certs', 'keys', 'backups', 'challenges':
            os.rename(self.line.path(name), self.line.path('away'))
            for command in 'cron', 'renew':
                self.check_nothing([command], 1, self.line.path(name), 'folder')
            os.rename(self.line.path('away'), self.line.path(name))

    def test_folder_that_is_a_file(self):
        with open(self.line.path('keys'), 'w'):
            pass
        done = self.line.run('init', check=1)
        self.assertIn(self.line.path('keys'), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertEqual(self.ca.connections, 0)

    @only_if(os.geteuid())      # root may write everywhere
    def test_folder_that_cannot_be_written(self):
        self.line.run('init', check=0)
        for name in 'certs', 'keys', 'backups':
            os.chmod(self.line.path(name), 0o555)
            self.assertIn(self.line.path(name), self.line.run('cron', check=1).stderr)
            os.chmod(self.line.path(name), 0o755)

    def test_ca_bundle_missing(self):
        self.line.set(ca_bundle=self.line.path('nothing.pem'))
        self.check_nothing(['init'], 1, 'ca-bundle', 'nothing.pem')

    def test_missing_hook(self):
        self.line.set(post_certchange=self.line.path('cert-hook'))
        self.check_nothing(['init'], 1, 'cert-hook', hooks=True)
        with open(self.line.path('cert-hook'), 'w') as file:
            file.write('#!/bin/sh\n')
        self.check_nothing(['init'], 1, 'cert-hook', 'chmod', hooks=True)
        os.unlink(self.line.path('cert-hook'))
        os.mkdir(self.line.path('cert-hook'))
        self.check_nothing(['init'], 1, 'cert-hook', hooks=True)
        self.line.run('init', check=0)      # without -k, it does not matter yet


@only_if(not os.geteuid())
class AsRoot(Untouched):
    """Whoever may change the config or a hook, or put another in its place, would be root."""

    def setUp(self):
        super().setUp()
        self.line.hook('post-certchange')
        self.hook = self.line.path('post-certchange')

    def spoil(self, path, mode=None, owner=None):
        """Give a file or folder another mode or owner; returns what undoes it."""
        info = os.stat(path)
        if mode is not None:
            os.chmod(path, mode)
        if owner is not None:
            os.chown(path, owner, -1)

        def mend():
            os.chown(path, info.st_uid, info.st_gid)
            os.chmod(path, info.st_mode & 0o7777)
        return mend

    def test_config_and_hook(self):
        for path in self.line.config, self.hook:
            for change in {'mode': 0o775}, {'mode': 0o757}, {'owner': 1}:
                with self.subTest(path=os.path.basename(path), **change):
                    mend = self.spoil(path, **change)
                    self.check_nothing(['init'], 1, path, 'root', hooks=True)
                    mend()
        self.line.run('init', hooks=True, check=0)

    def test_other_commands_look_too(self):
        self.line.run('init', hooks=True, check=0)
        self.ca.connections = 0
        del self.line.web.hits[:]
        mend = self.spoil(self.line.config, mode=0o666)
        for command in ['cron'], ['renew'], ['status'], ['cron', '-n']:
            self.check_nothing(command, 1, self.line.config)
        mend()
        mend = self.spoil(self.hook, owner=1)
        self.check_nothing(['cron'], 1, self.hook, hooks=True)
        mend()

    def test_folders_on_the_way(self):
        for name in 'etc', 'bin':
            os.mkdir(self.line.path(name))
        config, hook = self.line.path('etc', 'line.conf'), self.line.path('bin', 'hook')
        shutil.copy(self.hook, hook)
        self.line.set(post_certchange=hook)
        os.rename(self.line.config, config)
        self.line.config = config
        for folder in 'etc', 'bin':
            for change in {'mode': 0o775}, {'mode': 0o777}, {'owner': 1}:
                with self.subTest(folder=folder, **change):
                    mend = self.spoil(self.line.path(folder), **change)
                    self.check_nothing(['init'], 1, self.line.path(folder), hooks=True)
                    mend()
        # In a sticky folder nobody can replace what belongs to root.
        for folder in 'etc', 'bin':
            os.chmod(self.line.path(folder), 0o1777)
        self.line.run('init', hooks=True, check=0)

    def test_links(self):
        os.mkdir(self.line.path('evil'))
        os.mkdir(self.line.path('good'))
        real = self.line.path('evil', 'real.conf')
        os.rename(self.line.config, real)
        os.symlink('evil/real.conf', self.line.config)
        mend = self.spoil(self.line.path('evil'), mode=0o777)
        self.check_nothing(['init'], 1, self.line.path('evil'))
        mend()
        mend = self.spoil(real, mode=0o666)
        self.check_nothing(['init'], 1, real)
        mend()
        # A good file, but the link to it is in a folder where others may put another.
        os.unlink(self.line.config)
        self.line.config = self.line.path('good', 'line.conf')
        os.symlink(real, self.line.config)
        mend = self.spoil(self.line.path('good'), mode=0o777)
        self.check_nothing(['init'], 1, self.line.path('good'))
        mend()
        # A link on the way to a folder, and links to links
        os.symlink('good', self.line.path('alias'))
        self.line.config = self.line.path('alias', 'line.conf')
        mend = self.spoil(self.line.path('evil'), owner=1)
        self.check_nothing(['init'], 1, self.line.path('evil'))
        mend()
        self.line.run('init', check=0)

    def test_hook_behind_a_link(self):
        os.mkdir(self.line.path('evil'))
        shutil.copy(self.hook, self.line.path('evil', 'hook'))
        os.unlink(self.hook)
        os.symlink(self.line.path('evil', 'hook'), self.hook)
        mend = self.spoil(self.line.path('evil'), mode=0o777)
        self.check_nothing(['init'], 1, self.line.path('evil'), hooks=True)
        mend()
        self.line.run('init', hooks=True, check=0)
        self.assertEqual(self.line.log(), ['post-certchange'])

    def test_without_k_hooks_do_not_matter(self):
        self.spoil(self.hook, mode=0o777)
        self.line.run('init', check=0)


if __name__ == '__main__':
    sys.exit(unittest.main())
