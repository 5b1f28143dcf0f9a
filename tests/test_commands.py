"""The whole program through its command line: every command, on every kind of ground."""
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import unittest

from tests.fake_ca import FakeCA, items, pem, tlv
from tests.support import PATIENCE, PROGRAM, Nursery, cert_names, openssl, wait_for
from tests import support

DAY, HOUR = 86400, 3600
BUSY = 75

class Line(support.QuickLine):
    """As support.QuickLine, but hooks note the public keys (spki: digests) that they find only
    where that is asked for."""

    def hook(self, name, body='', keys=False):
        super().hook(name, body)
        with open(self.path(name)) as file:
            text = file.read()
        if not keys:
            write(self.path(name), text.replace('[ -z "$1" ] ||', 'return;'))


def plant(line, ca, which='live', kind='ec', age=1, life=90, names=('example.org',), chain=True,
          key=None):
    """Put a pair in place as if another program had made it: key and certificate `age` days old,
    for a life of `life` days; `key`: the name of a key that is there, instead of a new one."""
    for folder in 'certs', 'keys', 'backups':
        os.makedirs(line.path(folder), exist_ok=True)
    if key is None:
        new_key(line.key(which), kind)
    if not os.path.exists(line.path('account.key')):
        new_key(line.path('account.key'))
    public = public_key(line.key(key or which))
    start = time.time() - age * DAY
    der = ca.pki.certificate(names[0], public, (start, start + life * DAY),
                             [tlv(0x82, name.encode()) for name in names])
    with open(line.crt(which), 'w') as file:
        file.write('\n'.join(pem('CERTIFICATE', block)
                             for block in [der] + (ca.pki.intermediates if chain else [])))
    for path in [line.crt(which)] + ([] if key else [line.key(which)]):
        os.utime(path, (start, start))


KEYS = {'ec': [], 'rsa': []}    # of each kind, (PEM, public key in DER), and how many
OPTION = {'ec': ('ec_paramgen_curve:P-256', 12), 'rsa': ('rsa_keygen_bits:2048', 1)}


def new_key(path, kind='ec', mode=0o600):
    """A private key as PKCS#8: 'ec' or 'rsa'. A few are enough, if no line meets one again."""
    option, enough = OPTION[kind]
    if len(KEYS[kind]) < enough:
        text = openssl('genpkey', '-algorithm', kind.upper(), '-pkeyopt', option)
        write(path, text)
        KEYS[kind].append((text, openssl('pkey', '-in', path, '-pubout', '-outform', 'DER')))
    else:
        KEYS[kind].append(KEYS[kind].pop(0))
    write(path, KEYS[kind][-1][0])
    os.chmod(path, mode)


def public_key(path):
    """The public key (DER) of a key file."""
    known = dict(KEYS['ec'] + KEYS['rsa']).get(read(path))
    return known or openssl('pkey', '-in', path, '-pubout', '-outform', 'DER')


def as_pkcs1(path):
    """Rewrite an RSA key as the programs of 2017 wrote it, with its mode and time."""
    with open(path) as file:
        data = base64.b64decode(''.join(file.read().split('\n')[1:-2]))
    (_, content, _), = items(data)
    inner = items(content)[2][1]
    info = os.stat(path)
    with open(path, 'w') as file:
        file.write(pem('RSA PRIVATE KEY', inner))
    os.utime(path, (info.st_mtime, info.st_mtime))


KNOWN = {}      # what openssl said of files with this content


def spki(path):
    """support.spki(), which asks openssl, once for each content."""
    data = read(path)
    if data not in KNOWN:
        KNOWN[data] = support.spki(path)
    return KNOWN[data]


def pair_matches(key, crt):
    """Whether a certificate file belongs to a key file."""
    return spki(key) == spki(crt)


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def write(path, data):
    with open(path, 'wb') as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def traces(folder):
    """What a write of any kind would change: file -> (inode, times, mode, size)."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in [''] + folders + files:
            info = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns,
                                               info.st_mode, info.st_size)
    return found


class Case(unittest.TestCase):
    def setUp(self):
        self.ca = FakeCA().start()
        self.addCleanup(self.ca.stop)

    def use(self, **options):
        """A new line with these options, not yet set up."""
        self.line = Line(self.ca, **options).__enter__()
        self.addCleanup(self.line.__exit__)
        return self.line

    def settled(self, hooks=(), **options):
        """A new line with a pair in place; `hooks` are configured and have run."""
        line = self.use(**options)
        plant(line, self.ca)
        for name in hooks:
            line.hook(name)
        if hooks:
            line.run('cron', hooks=True, check=0)
            os.unlink(line.path('hooks.log'))
        self.ca.clear()
        return line

    def silent(self, *args, **options):
        """A run that has nothing to do, and shows it."""
        before = len(self.ca.requests), traces(self.line.folder.name)
        done = self.line.run(*(args or ('cron',)), check=0, **options)
        self.assertEqual((done.stdout, done.stderr), ('', ''))
        self.assertEqual((len(self.ca.requests), traces(self.line.folder.name)), before)

    def refused(self, *args, status=1, parts=(), **options):
        """A run that ends with this status and one line on stderr, having asked nobody."""
        before = len(self.ca.requests)
        done = self.line.run(*args, check=status, **options)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith('letsencrypt-tiny: '), done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)
        self.assertEqual(len(self.ca.requests), before)
        return done

    def orders(self):
        """Names of the certificates that were ordered, each order a tuple."""
        return [tuple(order.names) for order in self.ca.orders]

    def good(self):
        """The live files fit, and nothing is left half done."""
        line = self.line
        self.assertTrue(pair_matches(line.key(), line.crt()))
        left = [name for folder in ('certs', 'keys', 'backups', 'challenges')
                for name in os.listdir(line.path(folder)) if name.endswith('.tmp')]
        self.assertEqual((left, os.listdir(line.path('challenges'))), ([], []))

    def kept(self, *paths):
        """The backups' files, which hold each of these contents (bytes)."""
        names = os.listdir(self.line.path('backups'))
        contents = [read(self.line.path('backups', name)) for name in names]
        for data in paths:
            self.assertIn(data, contents, names)
        return names

    def shell(self, script, *args, **options):
        """Run the program from a shell after `script`; a CompletedProcess."""
        given = {'env': {'PATH': os.environ['PATH'], 'LANG': 'C'}, 'stdout': subprocess.PIPE,
                     'stderr': subprocess.PIPE, 'stdin': subprocess.DEVNULL, 'timeout': PATIENCE}
        given.update(options)
        return subprocess.run(['sh', '-c', script + '\nexec "$@"', 'sh', *PROGRAM, '-c',
                               self.line.config, *args], **given)


class Life(Case):
    """From init to the next key."""

    def test_init_twice(self):
        line = self.use(domains=['example.org', 'www.example.org'])
        done = line.run('init', check=0, real=True)
        self.assertIn("Obtaining certificate 'live' for example.org, www.example.org\n",
                      done.stdout)
        self.assertEqual(done.stderr, '')
        self.good()
        self.assertEqual(set(cert_names(line.crt())), {'example.org', 'www.example.org'})
        chain = read(line.crt()).decode().split('-----END CERTIFICATE-----\n')
        self.assertEqual(len(chain), 3)     # leaf, intermediate, nothing
        self.assertEqual(self.ca.issued[0].pem, chain[0] + '-----END CERTIFICATE-----\n')
        self.assertIn(b'-----BEGIN PRIVATE KEY-----', read(line.key()))
        self.assertEqual(len(self.orders()), 1)
        self.silent('init', real=True)
        self.silent('cron', real=True)

    def test_init_overwrites_no_key(self):
        line = self.use()
        os.mkdir(line.path('keys'))
        new_key(line.key())
        new_key(line.path('account.key'))
        keys = read(line.key()), read(line.path('account.key'))
        line.run('init', check=0)
        self.assertEqual((read(line.key()), read(line.path('account.key'))), keys)
        self.good()

    def test_silent_cron_asks_nobody_and_runs_nothing(self):
        line = self.settled(['post-certchange', 'post-keychange'])
        os.mkdir(line.path('bin'))
        write(line.path('bin', 'openssl'), '#!/bin/sh\necho "$@" >> %s\nexec %s "$@"\n' % (
            line.path('calls'), shutil.which('openssl')))
        os.chmod(line.path('bin', 'openssl'), 0o755)
        path = {'PATH': line.path('bin') + ':' + os.environ['PATH']}
        connections = self.ca.connections
        for _ in range(2):
            self.silent(hooks=True, env=path, real=True)
        self.silent(env=path)
        self.assertFalse(os.path.exists(line.path('calls')))
        self.assertEqual((self.ca.connections, line.log()), (connections, []))
        line.run('renew', check=0, env=path)        # but it would have been counted
        self.assertIn('-sign', read(line.path('calls')).decode())

    def test_renew_keeps_the_key(self):
        line = self.settled(['post-certchange', 'post-keychange'])
        key, crt = read(line.key()), read(line.crt())
        done = line.run('renew', hooks=True, check=0)
        self.assertEqual(done.stdout.splitlines(), [
            "Obtaining certificate 'live' for example.org", 'Running post-certchange'])
        self.assertEqual(read(line.key()), key)
        self.assertNotEqual(read(line.crt()), crt)
        self.good()
        self.kept(crt)
        self.assertEqual((len(self.ca.issued), line.log()), (1, ['post-certchange']))
        self.silent(hooks=True)

    def test_renewal_when_due(self):
        line = self.settled()
        with_days_left = read(line.crt())
        plant(line, self.ca, age=65, key='live')
        self.assertNotEqual(read(line.crt()), with_days_left)
        line.run('cron', check=0)
        self.assertEqual(len(self.ca.issued), 1)
        self.good()
        self.silent()

    def test_domain_added_and_removed(self):
        line = self.settled()
        key = read(line.key())
        line.set(domains='example.org b.example')
        self.assertIn('for example.org, b.example', line.run('cron', check=0).stdout)
        self.assertEqual(set(cert_names(line.crt())), {'example.org', 'b.example'})
        self.silent()
        line.set(domains='b.example example.org')
        self.silent()
        line.set(domains='b.example')
        line.run('cron', check=0)
        self.assertEqual(cert_names(line.crt()), ['b.example'])
        self.assertEqual(read(line.key()), key)

    def at(self, days):
        """Let the CA's clock be days ahead; what to give to run() for the same."""
        self.ca.clock_offset = days * DAY
        return {'now': time.time() + days * DAY, 'hooks': True}

    def test_rollover(self):
        line = self.settled(['post-certchange', 'post-keychange'], max_key_age_days=20,
                            staging_hours=48)
        line.hook('post-certchange', keys=True)
        line.hook('post-keychange', keys=True)
        old, crt = spki(line.key()), read(line.crt())
        key = read(line.key())
        self.silent(**self.at(18))
        done = line.run('cron', check=0, **self.at(19.5))
        self.assertEqual([text.split(':')[0] for text in done.stdout.splitlines()], [
            "Making a new private key 'staging' (ec-p256)",
            "Obtaining certificate 'staging' for example.org", 'Running post-keychange'])
        new = spki(line.key('staging'))
        self.assertTrue(pair_matches(line.key('staging'), line.crt('staging')))
        self.assertEqual((spki(line.key()), read(line.crt())), (old, crt))
        call, = line.calls()
        self.assertEqual((call['HOOK'], call['LIVE_SPKI'], call['STAGING_SPKI']),
                         ('post-keychange', old, new))
        self.silent(**self.at(19.6))
        self.silent(**self.at(21.4))
        done = line.run('cron', check=0, **self.at(21.6))
        self.assertEqual(done.stdout.splitlines(), [
            "Making 'staging' live", 'Running post-certchange', 'Running post-keychange'])
        self.assertEqual((spki(line.key()), spki(line.crt())), (new, new))
        self.assertEqual([(call['HOOK'], call['LIVE_SPKI'], call['STAGING_SPKI'])
                          for call in line.calls()[1:]],
                         [('post-certchange', new, ''), ('post-keychange', new, '')])
        self.assertEqual(sorted(os.listdir(line.path('keys'))), ['live.key', 'live.lock'])
        self.assertEqual(sorted(os.listdir(line.path('certs'))), ['live.crt', 'live.state'])
        self.kept(key, crt)
        self.good()
        self.silent(**self.at(21.7))

    def test_each_key_waits_for_itself(self):
        """Also where no hook is there to tell when it was published."""
        line = self.settled(max_key_age_days=20, staging_hours=48)
        for start in 20, 45:
            key = read(line.key())
            for days, live in (0, key), (1.9, key), (2.1, None):
                line.run('cron', check=0, **self.at(start + days))
                self.assertEqual(os.path.exists(line.key('staging')), live is not None)
                self.assertEqual(read(line.key()) == key, live is not None)

    def test_renewal_while_a_key_is_staged(self):
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48)
        line.run('renew', '--new-key', hooks=True, check=0)
        os.unlink(line.path('hooks.log'))
        staged = read(line.key('staging')), read(line.crt('staging'))
        plant(line, self.ca, age=70, key='live')
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), ['post-certchange'])
        self.assertEqual((read(line.key('staging')), read(line.crt('staging'))), staged)
        self.good()
        self.silent(hooks=True)
        line.run('renew', hooks=True, check=0)      # by hand, both
        self.assertNotEqual(read(line.crt('staging')), staged[1])
        self.assertEqual(len(self.orders()), 4)

    def test_without_staging_hooks_run_once(self):
        line = self.settled(['post-certchange', 'post-keychange'])
        old = spki(line.key())
        line.age('live', 400)
        line.run('cron', hooks=True, check=0)
        self.assertNotEqual(spki(line.key()), old)
        self.assertEqual(line.log(), ['post-certchange', 'post-keychange'])
        self.assertFalse(os.path.exists(line.key('staging')) or os.path.exists(
            line.crt('staging')))
        self.assertEqual(len(self.orders()), 1)
        self.good()
        self.silent(hooks=True)

    def test_staging_key_put_there_after_a_rollover(self):
        line = self.settled(staging_hours=24)
        line.run('renew', '--new-key', check=0)
        line.run('cron', check=0, **self.at(2))
        self.assertFalse(os.path.exists(line.key('staging')))
        write(line.key('staging'), openssl('genpkey', '-algorithm', 'EC', '-pkeyopt',
                                           'ec_paramgen_curve:P-256'))
        live = spki(line.key())
        line.run('cron', check=0, **self.at(2.1))
        self.assertEqual(spki(line.key()), live)
        line.run('cron', check=0, **self.at(3.2))
        self.assertNotEqual(spki(line.key()), live)

    def test_new_key_by_hand_while_one_is_staged(self):
        line = self.settled(staging_hours=48)
        line.run('renew', '--new-key', check=0)
        staged = read(line.key('staging')), read(line.crt('staging'))
        before = len(self.ca.requests)
        done = line.run('renew', '--new-key', check=0)
        self.assertIn('staged already', done.stdout)
        self.assertEqual((read(line.key('staging')), read(line.crt('staging'))), staged)
        self.assertEqual(len(self.ca.requests), before)

    def test_other_kind_of_key(self):
        line = self.settled()
        line.set(key_type='ec-p384')
        line.run('cron', check=0)
        self.assertIn(b'P-384', openssl('pkey', '-in', line.key(), '-noout', '-text'))
        self.good()
        self.silent()

    def test_failed_request(self):
        """Told, remembered, tried again later by itself or now by hand."""
        line = self.settled()
        plant(line, self.ca, age=65, key='live')
        crt = read(line.crt())
        self.ca.fault('order', 'problem', type='rejectedIdentifier', detail='not today')
        done = line.run('cron', check=1)
        self.assertIn('not today', done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertEqual(read(line.crt()), crt)
        self.ca.clear()
        again = line.run('cron', check=1)
        self.assertEqual((len(again.stderr.splitlines()), again.stdout, self.ca.requests),
                         (1, '', []))
        self.assertIn('not today', again.stderr)
        self.assertIn('not today', line.run('status', check=1).stdout)
        line.run('renew', check=0)
        self.good()
        self.silent()

    def test_server_says_when(self):
        line = self.settled()
        self.ca.fault('order', 'status', status=429, headers={'Retry-After': '7200'})
        line.run('renew', check=1)
        self.ca.clear()
        for command in 'renew', 'cron', 'init':
            done = line.run(command, check=0 if command != 'renew' else 1)
            self.assertEqual(self.ca.requests, [], command)
        plant(line, self.ca, age=65, key='live')
        line.run('cron', check=1)
        self.assertEqual(self.ca.requests, [])
        done = line.run('cron', now=time.time() + 7300)
        self.assertEqual((done.returncode, len(self.ca.issued)), (0, 1), done.stderr)


class Adoption(Case):
    """An installation of 2017 is taken over as it is: RSA in PKCS#1, readable for all, the
    certificate without its chain, no state."""

    def adopted(self, **options):
        line = self.use(key_length=2048, max_key_age_days=256, renew_cert_before_expiry_days=15,
                        **options)
        plant(line, self.ca, kind='rsa', age=50, chain=False)
        as_pkcs1(line.key())
        os.chmod(line.key(), 0o644)
        return line

    def test_taken_over(self):
        line = self.adopted()
        line.hook('post-certchange')
        write(line.crt() + '.csr.tmp', 'left over')
        key, crt = read(line.key()), read(line.crt())
        done = line.run('cron', hooks=True, check=0)
        self.assertEqual(done.stdout.splitlines(), [
            'Making %s readable for its owner only' % line.key(), 'Running post-certchange'])
        self.assertEqual((read(line.key()), read(line.crt()), mode(line.key())),
                         (key, crt, 0o600))
        self.assertEqual((self.ca.requests, line.log()), ([], ['post-certchange']))
        self.silent(hooks=True)
        # and it goes on with the same key
        line.run('init', check=0)
        line.run('renew', hooks=True, check=0)
        self.assertEqual(read(line.key()), key)
        self.good_but('live.crt.csr.tmp')

    def good_but(self, name):
        if os.path.exists(self.line.path('certs', name)):
            os.unlink(self.line.path('certs', name))
        self.good()

    def test_staged_pair(self):
        line = self.adopted(staging_hours=48)
        plant(line, self.ca, 'staging', age=9, kind='ec', chain=False)
        line.set(key_type='ec-p256', key_length=None)
        for name in 'post-certchange', 'post-keychange':
            line.hook(name)
        os.chmod(line.key('staging'), 0o644)
        keys = read(line.key()), read(line.key('staging'))
        line.run('cron', hooks=True, check=0)
        # Nobody knows whether it was published, so the time starts now.
        self.assertEqual(line.log(), ['post-certchange', 'post-keychange'])
        self.assertEqual((read(line.key()), read(line.key('staging'))), keys)
        self.assertEqual((mode(line.key('staging')), self.orders()), (0o600, []))
        self.silent(hooks=True)
        self.ca.clock_offset = 49 * HOUR
        line.run('cron', hooks=True, now=time.time() + 49 * HOUR, check=0)
        self.assertEqual(read(line.key()), keys[1])
        self.kept(keys[0])
        self.assertEqual(self.orders(), [])

    def test_staged_key_without_certificate(self):
        line = self.adopted(staging_hours=48)
        new_key(line.key('staging'), mode=0o644)
        staged = read(line.key('staging'))
        line.run('cron', check=0)
        self.assertEqual(len(self.orders()), 1)
        self.assertEqual((read(line.key('staging')), mode(line.key('staging'))), (staged, 0o600))
        self.assertTrue(pair_matches(line.key('staging'), line.crt('staging')))
        self.silent()


class Broken(Case):
    """Files that were lost, swapped or spoiled by hand or by a crash."""

    def check_unusable(self, name, *parts):
        """All commands refuse, and say why, and no file is touched."""
        before = self.line.snapshot()
        for command in 'cron', 'renew', 'init':
            self.refused(command, parts=(self.line.path(name),) + parts)
            now = self.line.snapshot()
            now.pop('keys/live.lock', None)
            before.pop('keys/live.lock', None)
            self.assertEqual(now, before)
        self.refused('status', parts=(self.line.path(name),))

    def test_live_key_missing(self):
        line = self.settled()
        key, crt = read(line.key()), read(line.crt())
        os.unlink(line.key())
        for command in 'cron', 'renew', 'status':
            self.refused(command, parts=(line.key(), 'run init', line.path('backups')))
        write(line.key(), key)
        os.chmod(line.key(), 0o600)
        self.silent()
        os.unlink(line.key())
        line.run('init', check=0)
        self.assertNotEqual(read(line.key()), key)
        self.good()
        self.kept(crt)

    def test_live_key_garbage(self):
        line = self.settled()
        frame = b'-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n'
        for data in (b'garbage\n', b'', read(line.crt()), read(line.key())[:60], frame % b'MAA=',
                     frame % b'!!!', frame % b'MIGH', b'\0\xff' * 99):
            write(line.key(), data)
            self.refused('cron', parts=(line.key(),))
        self.check_unusable('keys/live.key')

    def test_live_key_is_a_folder(self):
        line = self.settled()
        os.unlink(line.key())
        os.mkdir(line.key())
        self.refused('cron', parts=(line.key(),))

    def test_key_with_passphrase(self):
        line = self.settled(staging_hours=48)
        line.run('renew', '--new-key', check=0)
        for name, command in (('keys/live.key', 'cron'), ('keys/staging.key', 'cron'),
                              ('account.key', 'renew')):
            plain = read(line.path(name))
            openssl('pkey', '-in', line.path(name), '-aes256', '-passout', 'pass:x', '-out',
                    line.path('locked'))
            os.replace(line.path('locked'), line.path(name))
            done = line.run(command, check=1)
            self.assertIn('passphrase', done.stderr)
            self.assertIn(line.path(name), done.stderr)
            write(line.path(name), plain)
            os.chmod(line.path(name), 0o600)

    def test_account_key_garbage(self):
        line = self.settled()
        write(line.path('account.key'), 'garbage')
        crt = read(line.crt())
        done = line.run('renew', check=1)
        self.assertIn(line.path('account.key'), done.stderr)
        self.assertEqual((read(line.crt()), self.orders()), (crt, []))

    def test_account_key_lost(self):
        line = self.use()
        line.run('init', check=0)
        os.unlink(line.path('account.key'))
        line.run('renew', check=0)
        self.assertEqual(len(self.ca.accounts), 2)
        self.good()

    def test_live_crt_deleted(self):
        line = self.settled()
        key = read(line.key())
        os.unlink(line.crt())
        line.run('cron', check=0)
        self.assertEqual((read(line.key()), len(self.orders())), (key, 1))
        self.good()
        self.silent()

    def test_live_crt_garbage_or_swapped(self):
        line = self.settled()
        key = read(line.key())
        plant(line, self.ca, 'other')
        chain = read(line.crt())
        for data in b'', b'\xff\0garbage', read(line.crt('other')), chain[len(chain) // 2:]:
            write(line.crt(), data)
            line.run('cron', check=0)
            self.good()
            self.kept(data)
            self.assertEqual(read(line.key()), key)
            self.silent()
        self.assertEqual(len(self.orders()), 4)

    def test_another_pair_by_hand(self):
        line = self.settled(['post-certchange', 'post-keychange'])
        plant(line, self.ca)
        line.run('cron', hooks=True, check=0)
        self.assertEqual((line.log(), self.ca.requests),
                         (['post-certchange', 'post-keychange'], []))
        self.silent(hooks=True)

    def test_staging_files_spoiled(self):
        line = self.settled(staging_hours=48)
        line.run('renew', '--new-key', check=0)
        staged, live = read(line.key('staging')), read(line.crt())
        orders = len(self.orders())
        for data in b'garbage', read(line.crt()):
            write(line.crt('staging'), data)
            line.run('cron', check=0)
            orders += 1
            self.assertTrue(pair_matches(line.key('staging'), line.crt('staging')))
            self.assertEqual((read(line.key('staging')), read(line.crt()), len(self.orders())),
                             (staged, live, orders))
        write(line.key('staging'), 'garbage')
        self.check_unusable('keys/staging.key')
        os.unlink(line.key('staging'))
        crt = read(line.crt('staging'))
        line.run('cron', check=0)
        self.assertFalse(os.path.exists(line.crt('staging')))
        self.kept(crt)
        self.assertEqual(len(self.orders()), orders)
        self.silent()

    def crash(self, live_key, live_crt, staging_key=None, staging_crt=None):
        """Files as a crash may leave them: which of the old and the new pair is where."""
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48)
        plant(line, self.ca, 'new', age=3)
        pairs = {'old': (read(line.key()), read(line.crt())),
                 'new': (read(line.key('new')), read(line.crt('new')))}
        os.unlink(line.key('new'))
        os.unlink(line.crt('new'))
        for path, name, part in ((line.key(), live_key, 0), (line.crt(), live_crt, 1),
                                 (line.key('staging'), staging_key, 0),
                                 (line.crt('staging'), staging_crt, 1)):
            if name:
                write(path, pairs[name][part])
                os.chmod(path, 0o644 if part else 0o600)
        return pairs

    def check_recovered(self, pairs, name, *kept):
        line = self.line
        line.run('cron', hooks=True, check=0)
        self.assertEqual((read(line.key()), read(line.crt())), pairs[name])
        self.assertFalse(os.path.exists(line.key('staging')) or os.path.exists(
            line.crt('staging')))
        self.assertEqual((self.ca.requests, self.line.log()),
                         ([], ['post-certchange', 'post-keychange'] if name == 'new' else []))
        self.kept(*kept)
        self.good()
        self.silent(hooks=True)

    def test_crash_between_the_renames(self):
        pairs = self.crash('new', 'old', None, 'new')
        self.check_recovered(pairs, 'new', pairs['old'][1])

    def test_power_cut_that_kept_the_second_rename(self):
        pairs = self.crash('old', 'new', 'new', None)
        self.check_recovered(pairs, 'new', pairs['old'][0])

    def test_power_cut_that_kept_both_names(self):
        pairs = self.crash('new', 'new', 'new', 'new')
        self.check_recovered(pairs, 'new', pairs['new'][1])

    def test_staged_key_is_the_live_one(self):
        pairs = self.crash('old', 'old', 'old', None)
        self.check_recovered(pairs, 'old')

    def test_staged_certificate_alone(self):
        pairs = self.crash('old', 'old', None, 'new')
        self.check_recovered(pairs, 'old', pairs['new'][1])

    def test_power_cut_with_a_new_key_and_no_certificate(self):
        """live.crt came back as it was, the staged pair is half gone."""
        pairs = self.crash('new', 'old', 'new', 'new')
        self.check_recovered(pairs, 'new', pairs['old'][1])

    def test_left_overs_are_removed(self):
        line = self.settled()
        secret = read(line.key())
        left = [line.key() + '.tmp', line.key('staging') + '.tmp', line.crt() + '.tmp',
                line.crt('staging') + '.tmp', line.path('certs', 'live.state.tmp'),
                line.path('account.key.tmp'), line.path('backups', 'live.tmp'),
                line.path('challenges', 'Token-1'), line.path('challenges', 'Token_2')]
        for path in left:
            write(path, secret)
        keep = line.path('challenges', 'of-another-line'), line.path('certs', 'mine.tmp')
        for path in keep:
            write(path, 'keep')
        line.edit_state(lambda state: state.update(challenges=left[-2:]))
        self.assertEqual(line.run('cron', check=0).stderr, '')
        self.assertEqual([path for path in left if os.path.lexists(path)], [])
        self.assertEqual([path for path in keep if os.path.lexists(path)], list(keep))
        self.assertNotIn('challenges', line.state())
        self.silent()


class State(Case):
    """The state file is a memory that may be lost."""

    def check_lost(self, data):
        write(self.line.path('certs', 'live.state'), data)
        done = self.line.run('cron', hooks=True, check=0)
        self.assertEqual(done.stderr, '')
        self.assertEqual(self.line.log(), ['post-certchange', 'post-keychange'])
        os.unlink(self.line.path('hooks.log'))
        self.silent(hooks=True)

    def test_lost_or_garbage(self):
        line = self.settled(['post-certchange', 'post-keychange'])
        os.unlink(line.path('certs', 'live.state'))
        line.run('status', check=1)
        self.assertFalse(os.path.exists(line.path('certs', 'live.state')))
        for data in b'', b'\0' * 200, b'[1, 2', b'["a"]', b'\xff\xfe', b'[' * 9999:
            self.check_lost(data)
        self.assertEqual((self.ca.requests, mode(line.path('certs', 'live.state'))), ([], 0o644))

    def test_strange_entries(self):
        """Whatever is in there, no run breaks on it."""
        line = self.settled(['post-certchange', 'post-keychange'])
        good = line.state()
        deep = []
        for _ in range(400):
            deep = [deep]
        retry = {'count': 3, 'after': time.time() - 5, 'server': False, 'names': ['example.org'],
                 'directory': self.ca.directory_url, 'error': 'x'}
        strange = [{'challenges': ['/\0/token']}, {'challenges': ['/x\ud800/token']},
                   {'challenges': ['/' + 'x/' * 5000 + 'token']}, {'owed': deep},
                   {'seen': 10**300}, {'what': 'is this'}, {'retry': dict(retry, count=-100)},
                   {'retry': dict(retry, count=10**300, error='\ud800\x1b[2J'), 'account': {
                       'directory': self.ca.directory_url, 'url': '\ud800', 'thumbprint': ''}}]
        for entry in strange:
            with self.subTest(str(entry)[:60]):
                write(line.path('certs', 'live.state'), json.dumps(dict(good, **entry)))
                if 'retry' in entry:
                    plant(line, self.ca, age=65, key='live')
                line.run('status')
                done = line.run('cron', hooks=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn('Traceback', done.stderr)
                self.good()

    def test_staging_time_from_the_future(self):
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48)
        line.run('renew', '--new-key', hooks=True, check=0)
        os.unlink(line.path('hooks.log'))
        line.edit_state(lambda state: state.update(published=time.time() + 30 * DAY))
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), ['post-keychange'])
        self.assertAlmostEqual(line.state()['published'], time.time(), delta=60)

    def test_is_a_folder(self):
        line = self.settled()
        line.hook('post-certchange')
        os.mkdir(line.path('certs', 'live.state'))
        done = line.run('cron', hooks=True, check=1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn(line.path('certs', 'live.state'), done.stderr)


class Ground(Case):
    """Modes, owners, file systems, names."""
    MODES = {'certs': 0o755, 'keys': 0o710, 'backups': 0o700, 'account': 0o700,
             'account/account.key': 0o600, 'keys/live.key': 0o600, 'keys/live.lock': 0o600,
             'certs/live.crt': 0o644, 'certs/live.state': 0o644}

    def test_modes_do_not_depend_on_the_umask(self):
        for umask in '000', '077':
            line = self.use(staging_hours=48)
            line.set(account_key=line.path('account', 'account.key'))
            seen, find = [], line.web.find

            def look(path, find=find, seen=seen, line=line):
                seen.extend(mode(line.path('challenges', name))
                            for name in os.listdir(line.path('challenges')))
                return find(path)
            line.web.find = look
            done = self.shell('umask ' + umask, 'init')
            self.assertEqual(done.returncode, 0, done.stderr)
            done = self.shell('umask ' + umask, 'renew', '--new-key')
            self.assertEqual(done.returncode, 0, done.stderr)
            wanted = dict(self.MODES, **{'keys/staging.key': 0o600, 'certs/staging.crt': 0o644})
            self.assertEqual({name: mode(line.path(name)) for name in wanted}, wanted)
            self.assertEqual(set(seen), {0o644})

    def check_inherited(self, wanted):
        """The next keys get the mode, owner and group of the live one."""
        line = self.line

        def like(path):
            info = os.stat(path)
            return stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        self.assertEqual(like(line.key()), wanted)
        line.run('renew', '--new-key', check=0)
        self.assertEqual(like(line.key('staging')), wanted)
        self.ca.clock_offset = 49 * HOUR
        line.run('cron', now=time.time() + 49 * HOUR, check=0)
        self.assertFalse(os.path.exists(line.key('staging')))
        self.assertEqual(like(line.key()), wanted)
        names = [name for name in self.kept() if name.startswith('live.key')]
        self.assertEqual([like(line.path('backups', name)) for name in names], [wanted])
        self.ca.clock_offset = 0

    def test_mode_is_inherited(self):
        line = self.settled(staging_hours=48)
        os.chmod(line.key(), 0o440)
        self.check_inherited((0o440, os.geteuid(), os.stat(line.key()).st_gid))

    @support.only_if(not os.geteuid())      # only root may give files away
    def test_owner_and_group_are_inherited(self):
        line = self.settled(staging_hours=48)
        os.chown(line.key(), 1, 2)
        os.chmod(line.key(), 0o640)
        self.check_inherited((0o640, 1, 2))

    @support.only_if(not os.geteuid())      # only root gives files to other groups
    def test_group_is_not_that_of_the_folder(self):
        line = self.settled()
        os.chown(line.path('keys'), 0, 1)
        os.chmod(line.path('keys'), 0o2710)
        line.run('renew', '--new-key', check=0)
        self.assertEqual(os.stat(line.key()).st_gid, 0)

    def test_world_readable_keys_are_tightened(self):
        line = self.settled(staging_hours=48)
        line.run('renew', '--new-key', check=0)
        keys = line.key(), line.key('staging'), line.path('account.key')
        for path in keys:
            os.chmod(path, 0o644)
        done = line.run('cron', check=0)
        for path in keys:
            self.assertIn(path, done.stdout)
            self.assertEqual(mode(path), 0o600)
        self.silent()

    def test_backups_on_another_file_system(self):
        place = support.other_file_system(tempfile.gettempdir())
        if not place:
            self.skipTest('no other file system to write to')
        line = self.settled()
        with tempfile.TemporaryDirectory(dir=place) as folder:
            line.set(backups=folder)
            key, crt = read(line.key()), read(line.crt())
            line.age('live', 400)
            os.chmod(line.key(), 0o640)
            line.run('cron', check=0)
            found = {name.partition('.2')[0]: os.path.join(folder, name)
                     for name in os.listdir(folder)}
            self.assertEqual(sorted(found), ['live.crt', 'live.key'])
            self.assertEqual((read(found['live.key']), read(found['live.crt'])), (key, crt))
            self.assertEqual(mode(found['live.key']), 0o640)
            self.good()
            line.set(backups=line.path('backups'))

    def test_two_backups_in_one_second(self):
        """Whatever is replaced is kept, and no backup replaces another."""
        line = self.settled()
        contents = []
        for _ in range(3):
            contents.append(read(line.crt()))
            line.run('renew', check=0)
        self.assertGreaterEqual(len(self.kept(*contents)), 3)

    def test_folders_behind_links(self):
        line = self.use()
        for name in 'certs', 'keys', 'backups':
            os.mkdir(line.path('real-' + name))
            os.symlink('real-' + name, line.path(name))
        line.run('init', check=0)
        line.age('live', 400)
        line.run('cron', check=0)
        for name in 'certs', 'keys', 'backups':
            self.assertTrue(os.path.islink(line.path(name)))
        self.good()
        self.assertEqual(len(self.kept()), 2)

    def test_live_files_that_are_links(self):
        """What they led to is kept."""
        line = self.settled()
        for path in line.key(), line.crt():
            os.rename(path, path + '.real')
            os.symlink(os.path.basename(path) + '.real', path)
        old = read(line.key()), read(line.crt())
        line.age('live', 400)
        line.run('cron', check=0)
        self.assertNotEqual(read(line.key()), old[0])
        self.good()
        self.kept(*old)

    def test_link_that_leads_nowhere(self):
        line = self.settled()
        os.unlink(line.crt())
        os.symlink(line.path('nowhere'), line.crt())
        line.run('cron', check=0)
        self.assertTrue(pair_matches(line.key(), line.crt()))
        self.silent()

    def test_keys_folder_that_holds_the_account_key(self):
        line = self.use()
        line.set(account_key=line.path('keys', 'account.key'))
        line.run('init', check=0)
        self.assertEqual(os.stat(line.path('keys')).st_mode & 0o777, 0o710)

    def test_nothing_is_made_where_something_cannot(self):
        line = self.use(backups='/dev/null/backups')
        self.refused('init', parts=['/dev/null'])
        self.assertFalse(os.path.exists(line.path('certs')))

    def test_names_with_spaces(self):
        line = self.use()
        for name in 'my config', 'my certs', 'my hooks':
            os.mkdir(line.path(name))
        line.hook('post-certchange')
        hook = line.path('my hooks', 'a "hook"; $x')
        os.rename(line.path('post-certchange'), hook)
        line.set(certs=line.path('my certs'), keys=line.path('my keys', 'more \u00fc'),
                 challenge_dir=line.path('my challenges'), post_certchange=hook,
                 account_key=line.path('my keys', 'account key.pem'))
        line.web.directory = line.path('my challenges')
        config = line.path('my config', 'my line.conf')
        os.rename(line.config, config)
        line.config = config
        line.run('init', hooks=True, check=0)
        call, = line.calls()
        self.assertEqual((call['CONFIG'], call['LIVE_CRT'], call['LIVE_KEY']), (
            config, line.path('my certs', 'live.crt'), line.path('my keys', 'more \u00fc',
                                                                 'live.key')))
        self.assertTrue(pair_matches(call['LIVE_KEY'], call['LIVE_CRT']))
        self.silent(hooks=True)

    def test_other_prefixes(self):
        line = self.use(live='mail.example.org', staging='next', staging_hours=48)
        line.run('init', check=0)
        line.run('renew', '--new-key', check=0)
        self.assertEqual(sorted(os.listdir(line.path('certs'))), [
            'mail.example.org.crt', 'mail.example.org.state', 'next.crt'])
        self.assertEqual(sorted(os.listdir(line.path('keys'))), [
            'mail.example.org.key', 'mail.example.org.lock', 'next.key'])


# Run before the program: starting a process of a session of its own takes a while.
SLOW_START = '''
import subprocess, time
class Popen(subprocess.Popen):
    def __init__(self, *args, start_new_session=False, **options):
        super().__init__(*args, start_new_session=start_new_session, **options)
        time.sleep(2 * start_new_session)
subprocess.Popen = Popen
'''


class Together(Case):
    """Several runs at once, and signals."""

    def test_eight_runs_at_once(self):
        line = self.settled()
        line.hook('post-certchange', 'while ! [ -e %s ]; do sleep 0.02; done' % line.path('go'))
        plant(line, self.ca, age=65, key='live')
        runs = [line.start('cron', hooks=True) for _ in range(8)]
        wait_for(lambda: sum(run.poll() is not None for run in runs) == 7, PATIENCE, 'seven ends')
        write(line.path('go'), '')
        outputs = [run.communicate(timeout=PATIENCE) for run in runs]
        self.assertEqual(sorted(run.returncode for run in runs), [0] + 7 * [BUSY])
        for run, (out, err) in zip(runs, outputs):
            if run.returncode:
                self.assertEqual(out, '')
                self.assertEqual(len(err.splitlines()), 1)
                self.assertIn('another run', err)
                self.assertIn(line.path('keys', 'live.lock'), err)
            else:
                self.assertEqual(err, '')
        self.assertEqual((len(self.orders()), line.log()), (1, ['post-certchange']))
        self.good()
        self.silent(hooks=True)

    def test_status_and_dry_run_do_not_wait(self):
        line = self.settled()
        line.run('cron', check=0)
        with open(line.path('keys', 'live.lock')) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.refused('cron', status=BUSY, parts=('another run',))
            self.refused('renew', status=BUSY)
            line.run('status', check=0)
            line.run('cron', '-n', check=0)
        self.silent()

    def check_stopped(self, run, number, *groups):
        """It ends by a signal, and so do the hooks in these process groups, which have its output
        too."""
        os.kill(run.pid, number)
        try:
            _, err = run.communicate(timeout=PATIENCE)
        finally:
            for group in (run.pid, *groups) if run.returncode is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            run.communicate()
        self.assertEqual(run.returncode, 128 + number, err)
        self.assertEqual(len(err.splitlines()), 1, err)
        self.assertIn(signal.Signals(number).name, err)

    def test_signals_while_the_ca_validates(self):
        line = self.settled()
        plant(line, self.ca, age=65, key='live')
        before = read(line.key()), read(line.crt())
        self.ca.validation_delay = 600
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            self.ca.clear()
            run = line.start('cron')
            wait_for(lambda: any(one.kind == 'order-poll' for one in self.ca.requests),
                     PATIENCE, 'a poll')
            self.assertEqual(len(os.listdir(line.path('challenges'))), 1)
            self.check_stopped(run, number)
            self.assertEqual(os.listdir(line.path('challenges')), [])
            self.assertEqual((read(line.key()), read(line.crt())), before)
            # It was not the CA's fault, so the next run need not wait.
            self.assertNotIn('retry', line.state())
            self.assertNotIn('challenges', line.state())
        self.ca.validation_delay = 0
        line.run('cron', check=0)
        self.good()
        self.silent()

    def test_signals_during_a_hook(self):
        line = self.settled()
        line.hook('post-certchange', 'sleep 600 & echo $$ $! > %s.new; mv %s.new %s; wait' % (
            3 * (line.path('pids'),)))
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            run = line.start('cron', hooks=True)
            wait_for(lambda: os.path.exists(line.path('pids')), PATIENCE, 'a hook')
            pids = [int(pid) for pid in read(line.path('pids')).split()]
            self.check_stopped(run, number, pids[0])
            wait_for(lambda pids=pids: not any(map(alive, pids)), PATIENCE, 'end of the hook')
            os.unlink(line.path('pids'))
        line.hook('post-certchange')
        line.run('cron', hooks=True, check=0)
        self.assertEqual(line.log(), 4 * ['post-certchange'])

    def test_signal_while_a_hook_starts(self):
        """On a busy machine a hook may be well under way before its start is over for us."""
        line = self.settled()
        line.hook('post-certchange', 'sleep 600 & echo $$ > %s.new; mv %s.new %s; wait' % (
            3 * (line.path('pid'),)))
        run = line.start('cron', hooks=True, code=SLOW_START)
        wait_for(lambda: os.path.exists(line.path('pid')), PATIENCE, 'a hook')
        self.check_stopped(run, signal.SIGTERM, int(read(line.path('pid'))))
        # Nothing is kept from a hook (a shell would see to that itself)
        write(line.path('post-certchange'), '#!%s -IS\nimport signal\n'
              'with open(%r, "w") as file:\n'
              '    print(*signal.pthread_sigmask(signal.SIG_BLOCK, ()), file=file)\n' % (
                  PROGRAM[0], line.path('blocked')))
        line.run('cron', hooks=True, check=0)
        self.assertEqual(read(line.path('blocked')), b'\n')

    def test_hangup_is_ignored_under_nohup(self):
        line = self.settled()
        line.hook('post-certchange', 'touch %s; while ! [ -e %s ]; do sleep 0.02; done' % (
            line.path('up'), line.path('go')))
        run = subprocess.Popen(['sh', '-c', 'trap "" HUP; exec "$@"', 'sh', *PROGRAM, '-c',
                                line.config, '-k', 'cron'], stdout=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(line.path('up')), PATIENCE, 'a hook')
        os.kill(run.pid, signal.SIGHUP)
        write(line.path('go'), '')
        self.assertEqual(run.wait(PATIENCE), 0)

    def test_killed_while_the_ca_validates(self):
        """The next run removes what is left, and goes on."""
        line = self.settled()
        plant(line, self.ca, age=65, key='live')
        self.ca.validation_delay = 600
        run = line.start('cron')
        wait_for(lambda: any(one.kind == 'order-poll' for one in self.ca.requests), PATIENCE,
                 'a poll')
        run.kill()
        run.communicate()
        self.assertEqual(len(os.listdir(line.path('challenges'))), 1)
        self.ca.validation_delay = 0
        line.run('cron', check=0)
        self.good()
        self.silent()


def alive(pid):
    """Does a process run? (A zombie does not.)"""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


class Surroundings(Case):
    """Descriptors, environment and limits as cron, ssh and broken shells leave them."""

    @classmethod
    def setUpClass(cls):
        """A run whose standard output is a pipe that is full. It takes a while to give up."""
        cls.full_ca = FakeCA().start()
        cls.full_line = Line(cls.full_ca).__enter__()
        plant(cls.full_line, cls.full_ca)
        cls.ends = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b'x' * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(writer, True)
        cls.full_line.hook('post-certchange', 'echo loaded')
        cls.full_run = subprocess.Popen(
            [*PROGRAM, '-c', cls.full_line.config, '-k', 'renew'], stdout=writer,
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    @classmethod
    def tearDownClass(cls):
        cls.full_run.kill()
        cls.full_run.communicate()
        for end in cls.ends:
            os.close(end)
        cls.full_line.__exit__()
        cls.full_ca.stop()

    def test_with_a_full_pipe(self):
        _, err = self.full_run.communicate(timeout=PATIENCE)
        self.assertEqual((self.full_run.returncode, err), (0, b''))
        self.assertTrue(pair_matches(self.full_line.key(), self.full_line.crt()))
        self.assertEqual(self.full_line.log(), ['post-certchange'])

    def check_renewed(self, script, **options):
        """All is done though nobody can read of it, and a hook may write as usual."""
        issued = len(self.ca.issued)
        self.check_hook(script, 'renew', **options)
        self.assertEqual(len(self.ca.issued), issued + 1)
        self.assertEqual(spki(self.line.crt()), self.ca.issued[-1].spki)
        self.good()

    def check_hook(self, script, command='cron', **options):
        """The same, where there is only the hook to run."""
        self.line.edit_state(lambda state: state.clear())
        calls = len(self.line.log())
        done = self.shell(script, '-k', command, **options)
        self.assertEqual(done.returncode, 0, (script, done.stderr))
        self.assertEqual(len(self.line.log()), calls + 1)
        self.assertIn('certchange', self.line.state())

    def talking(self):
        """A line whose hook writes, and reads, and opens a file, and fails if it cannot."""
        line = self.settled()
        line.hook('post-certchange', 'set -e\necho loaded\necho also >&2\ncat\n'
                  'exec 5>%s\necho only this >&5' % line.path('own'))
        return line

    def test_closed_descriptors(self):
        line = self.talking()
        for script, check in (('exec >&-', self.check_hook), ('exec 2>&-', self.check_hook),
                              ('exec <&- >&- 2>&-', self.check_renewed)):
            check(script)
            self.assertEqual(read(line.path('own')), b'only this\n')
            for path in line.key(), line.crt(), line.path('certs', 'live.state'):
                self.assertNotIn(b'loaded', read(path))

    def test_full_device(self):
        self.talking()
        self.check_hook('exec > /dev/full')

    def test_nobody_reads(self):
        self.talking()
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        self.check_hook('', stdout=writer)

    def test_failure_without_stderr(self):
        """The exit status tells, at least."""
        line = self.settled()
        line.set(domains='example.org b.example')
        self.ca.fault('order', 'problem', type='rejectedIdentifier')
        for script in 'exec 2>&-', 'exec 2> /dev/full':
            self.assertEqual(self.shell(script, 'cron').returncode, 1)

    def test_empty_environment(self):
        self.talking()
        self.check_renewed('exec env -i "$@"', env={'PATH': os.environ['PATH']})

    def test_working_directory(self):
        line = self.talking()
        self.check_hook('mkdir {0}; cd {0}; rmdir {0}'.format(line.path('gone')))

    def test_config_by_relative_path(self):
        line = self.talking()
        done = subprocess.run([*PROGRAM, '-c', 'line.conf', '-k', 'cron'], cwd=line.folder.name,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(line.calls()[0]['CONFIG'], line.config)

    def test_little_memory_and_few_descriptors(self):
        self.talking()
        self.check_renewed('ulimit -v 65536; ulimit -d 65536; ulimit -n 32')

    def test_secrets_stay_out_of_core_files(self):
        line = self.settled()
        line.hook('post-certchange', 'cat /proc/$PPID/limits > ' + line.path('limits'))
        self.assertEqual(self.shell('ulimit -S -c unlimited', '-k', 'cron').returncode, 0)
        self.assertRegex(read(line.path('limits')).decode(), r'Max core file size +0 ')

    def test_bad_clock(self):
        """Far off, nothing new is made or goes live; the live files stay."""
        line = self.settled(staging_hours=48)
        line.run('renew', '--new-key', check=0)
        before = {name: spki(line.path(name)) for name in (
            'keys/live.key', 'certs/live.crt', 'keys/staging.key', 'certs/staging.crt')}
        for years, word in (-50, 'behind'), (-5, 'behind'), (3, 'ahead'):
            with self.subTest(years=years):
                done = line.run('cron', now=time.time() + years * 365 * DAY)
                self.assertEqual({name: spki(line.path(name)) for name in before}, before)
                self.assertNotIn('Traceback', done.stderr)
                if years > 0:       # where something seems due
                    self.assertEqual(done.returncode, 1)
                    self.assertIn('clock', done.stderr)
                    self.assertIn(word, done.stderr)
        self.ca.clock_offset = 2 * DAY
        self.assertIn('live', line.run('cron', check=0, now=time.time() + 2 * DAY).stdout)

    def test_clock_that_nobody_can_compare(self):
        """As after a start without a battery and, yet, without a network: no key goes live before
        its time, and no time of waiting begins in the past."""
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48)
        line.run('renew', '--new-key', hooks=True, check=0)
        live = spki(line.key())
        self.ca.fault('directory', 'drop', times=None)
        line.run('cron', hooks=True, now=time.time() + 20 * DAY)
        self.assertEqual(spki(line.key()), live)
        line.edit_state(lambda state: state.pop('keychange'))
        line.run('cron', hooks=True, now=time.time() - 20 * DAY)
        self.ca.faults.clear()
        line.run('cron', hooks=True, check=0)
        self.assertEqual(spki(line.key()), live)

    def test_ca_that_must_not_be_asked_the_time(self):
        line = self.settled()
        line.age('live', 366)
        self.ca.fault('directory', 'status', status=503, headers={'Retry-After': '3600'})
        for _ in range(2):
            done = line.run('cron', check=1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_clock_ahead_for_days(self):
        """Else a certificate is ordered each day, until the CA gives no more for a week."""
        line = self.settled()
        line.run('renew', check=0)
        for days in range(3):
            self.ca.clock_offset = days * DAY
            done = line.run('cron', now=time.time() + (days + 70) * DAY)
            self.assertIn('clock', done.stderr)
        self.assertLessEqual(len(self.orders()), 2)
        self.good()

    def test_no_new_key_by_a_bad_clock(self):
        line = self.settled()
        line.age('live', 366)
        for offset, words in ((2 * HOUR, '0.08 days behind'), (-30 * DAY, '30 days ahead')):
            self.ca.clock_offset = offset
            done = line.run('cron', check=1)
            self.assertIn('your clock is ' + words, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)
            self.assertFalse(os.path.exists(line.key('staging')))
        self.ca.clock_offset = -30 * 60
        line.run('cron', check=0)
        self.assertEqual(len(self.ca.issued), 1)


class CommandLine(Case):
    def program(self, *args, status=0):
        done = subprocess.run([*PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, encoding='utf-8')
        self.assertEqual(done.returncode, status, done.stderr)
        return done

    def test_version(self):
        done = self.program('--version')
        with open(PROGRAM[-1], 'rb') as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        self.assertRegex(done.stdout, r'\Aletsencrypt-tiny [0-9.]+, .*%s\n\Z' % digest)

    def test_help(self):
        for option in '-h', '--help':
            done = self.program(option)
            for word in 'init', 'renew', 'cron', 'status', '--new-key', '-k', '-n', '75':
                self.assertIn(word, done.stdout)

    def test_usage_errors(self):
        self.use()
        config = ['-c', self.line.config]
        before = traces(self.line.folder.name)
        for args in ([], ['cron'], config, config + ['bake'], config + ['cron', 'cron'],
                     config + ['init', 'cron'], config + ['cron', '--bake'], ['-c'],
                     config + ['cron', '-x'], config + ['cron', '--new-key'],
                     config + ['init', '--new-key'], config + ['init', '-n'],
                     config + ['status', '-n'], config + ['cron', self.line.config],
                     config + ['cron', '--hooks=yes'], config + ['cron', '']):
            with self.subTest(args):
                done = Nursery.get().run(args, {})
                self.assertEqual((done.returncode, done.stdout, len(done.stderr.splitlines())),
                                 (2, '', 1))
                self.assertTrue(done.stderr.startswith('letsencrypt-tiny: '))
                self.assertIn('--help', done.stderr)
        self.assertEqual(traces(self.line.folder.name), before)
        self.program(*config, 'bake', status=2)

    def test_options_before_and_after_the_command(self):
        line = self.settled()
        line.hook('post-certchange')
        for args in (['-c', line.config, '-k', 'cron'], ['cron', '-k', '-c', line.config],
                     ['-k', 'cron', '--config', line.config],
                     ['--hooks', 'cron', '--config=' + line.config]):
            os.utime(line.key())
            line.edit_state(lambda state: state.clear())
            self.assertEqual(Nursery.get().run(args, dict(os.environ)).returncode, 0)
        self.assertEqual(line.log(), 4 * ['post-certchange'])

    def test_several_lines(self):
        """One that fails does not stop the others, and the worst exit status is told."""
        lines = []
        for _ in range(3):
            lines.append(self.use())
            plant(lines[-1], self.ca)
        self.ca.http_port = lines[2].web.port
        args = [word for line in lines for word in ('-c', line.config)]
        self.program(*args, 'cron')
        lines[0].set(self_check='perhaps')
        os.unlink(lines[1].key())
        plant(lines[2], self.ca, age=65, key='live')
        done = self.program(*args, 'cron', status=2)
        self.assertEqual([text.split(': ')[1] for text in done.stderr.splitlines()],
                         [lines[0].config, lines[1].config])
        self.assertEqual(spki(lines[2].crt()), self.ca.issued[0].spki)
        lines[0].set(self_check='no')
        self.program(*args, 'cron', status=1)
        self.program(*args[:2] + args[4:], 'cron')

    def test_dry_run(self):
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48)
        for change, commands in (
                (lambda: None, [(['cron'], 'Nothing'),
                                (['renew'], 'Obtaining certificate'),
                                (['renew', '--new-key'], 'new private key')]),
                (lambda: line.age('live', 400), [(['cron'], 'new private key')]),
                (lambda: line.age('live', 4), [(['cron'], 'Nothing')]),
                (lambda: plant(line, self.ca, key='live'), [
                    (['-k', 'cron'], 'Running post-certchange')]),
                (lambda: os.unlink(line.crt()), [(['cron'], 'Obtaining certificate')])):
            change()
            for args, words in commands:
                for option in '-n', '--dry-run':
                    before = traces(line.folder.name)
                    done = line.run(option, *args, check=0)
                    self.assertIn(words, done.stdout)
                    self.assertEqual((traces(line.folder.name), done.stderr), (before, ''))
        os.unlink(line.path('certs', 'live.state'))
        line.run('cron', '-n', check=0)
        self.assertFalse(os.path.exists(line.path('certs', 'live.state')))
        self.assertEqual((self.ca.requests, line.log()), ([], []))

    def test_dry_run_of_renew_after_a_failure(self):
        line = self.settled()
        self.ca.fault('order', 'status', status=500)
        line.run('renew', check=1)
        done = line.run('renew', '-n', check=0)
        self.assertIn("Obtaining certificate 'live'", done.stdout)
        line.run('renew', check=0)

    def test_status(self):
        line = self.settled(['post-certchange', 'post-keychange'], staging_hours=48,
                            domains='example.org')
        before = traces(line.folder.name)
        said = line.run('status', check=0).stdout
        for part in (line.config, 'example.org', "'live'", 'ec-p256', '1 days ago',
                     spki(line.key()), 'next', 'renewed', time.strftime(
                         '%Y-%m-%d', time.gmtime(time.time() + 59 * DAY))):
            self.assertIn(part, said)
        self.assertNotIn('staging', said)
        self.assertEqual((traces(line.folder.name), self.ca.requests), (before, []))
        line.run('renew', '--new-key', check=0)
        said = line.run('status', check=1).stdout
        for part in "'staging'", spki(line.key('staging')), 'owed', 'post-keychange':
            self.assertIn(part, said)
        line.run('cron', hooks=True, check=0)
        said = line.run('status', check=0).stdout
        self.assertNotIn('owed', said)
        self.assertRegex(said, r"'staging' is published since \d{4}-")
        self.assertRegex(said, r'next: .*staging.*, \d{4}-')

    def test_status_tells_what_is_overdue(self):
        line = self.settled()
        plant(line, self.ca, age=61, key='live')
        self.assertIn('Obtaining', line.run('status', check=0).stdout)  # cron's next turn
        plant(line, self.ca, age=65, key='live')
        self.assertIn('Obtaining', line.run('status', check=1).stdout)
        plant(line, self.ca, age=95, key='live')
        line.run('status', check=1)
        os.unlink(line.crt())
        self.assertIn('none', line.run('status', check=1).stdout)
        self.assertEqual(self.ca.requests, [])


if __name__ == '__main__':
    unittest.main()
