"""Lines as other programs and the past leave them, and what tests of the whole program demand."""
import base64
import os
import subprocess
import time
import unittest

from letsencrypt_tiny import OPTIONS, Config
from tests.world.fake_ca import FakeCA, items, pem, tlv
from tests.world.line import DAY, Line
from tests.world.support import (
    PATIENCE, PROGRAM, openssl, pair_matches, read, wait_for, write)


def plain_config(**options):
    """The program's Config with these options, the others as if left out."""
    values = {row[0].replace('-', '_'): None if row[1] is ... else row[1] for row in OPTIONS}
    values.update(domains=['example.org'], max_key_age_days=365.0, account_key='/x/a',
                  challenge_dir='/x/w', certs='/x/c', keys='/x/k', backups='/x/b',
                  staging='staging')
    values.update(options)
    return Config(file='/x/conf', **values)


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


def traces(folder):
    """What a write of any kind would change: file -> (inode, times, mode, size)."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in [''] + folders + files:
            info = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns,
                                               info.st_mode, info.st_size)
    return found


def alive(pid):
    """Does a process run? (A zombie does not.)"""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


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
            line.forget_calls()
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

    def killed_while_the_ca_validates(self):
        """A request that is cut off by SIGKILL, with its challenge files in place."""
        self.ca.clear()
        self.ca.validation_delay = 600
        run = self.line.start('cron')
        wait_for(lambda: any(one.kind == 'order-poll' for one in self.ca.requests), PATIENCE,
                 'a poll')
        run.kill()
        run.communicate()
        self.ca.validation_delay = 0
