#!/usr/bin/env python3
"""Fresh Debian machines: the four steps of the README as they stand, with nginx and with apache as
they come, and a line's life with the oldest and the newest Python and OpenSSL.

    python3 tests/lab/roots.py [--install] [Class[.test]]

As root. `--install` gets debootstrap. Roots are made in ROOTS (default: a temporary folder), from
the mirror that this machine uses, and used through an overlay, so that they stay fresh. The CA is
Pebble, as in tests/lab/pebble.py; in a network of its own, it has the names of Let's Encrypt's two
CAs, and each root trusts it.
"""
import http.client
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.lab.pebble import Pebble
from tests.world.support import PATIENCE, ROOT, openssl, read, wait_for, write

NAME = 'www.my-server.test'
NET, MACHINE = '10.9.0.1', '10.9.0.2'   # the addresses of all others, and of the machine
CAS = 'acme-staging-v02.api.letsencrypt.org', 'acme-v02.api.letsencrypt.org'
FRESH, ENDS = ('trixie', 'bookworm'), ('bullseye', 'sid')
PACKAGES = {suite: 'python3,openssl,ca-certificates,nginx,apache2' for suite in FRESH}
PACKAGES.update({suite: 'python3,openssl,ca-certificates' for suite in ENDS})
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
# What the README's words before a block are, if it is for one web server only.
ONLY = {'nginx': 'nginx', 'apache': 'apache2'}


def run(*command, **options):
    """Run a program of the machine's; AssertionError with its words if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise AssertionError('%s: %s' % (' '.join(command), done.stdout.decode(errors='replace')))
    return done.stdout.decode(errors='replace')


def make_roots(folder):
    """Make what roots there are not, as many at a time as there are processors."""
    mirror = run('apt-get', 'indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages',
                 'Label: Debian').split()[0]
    left = [suite for suite in PACKAGES if not os.path.exists(os.path.join(folder, suite))]

    def work():
        while left:
            suite = left.pop()
            path = os.path.join(folder, suite)
            run('debootstrap', '--variant=minbase', '--keyring=' + KEYRING,
                '--include=' + PACKAGES[suite], suite, path + '.part', mirror)
            shutil.rmtree(path + '.part/var/cache/apt/archives')
            os.rename(path + '.part', path)

    threads = [threading.Thread(target=work) for _ in range(os.cpu_count())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    missing = [suite for suite in PACKAGES if not os.path.exists(os.path.join(folder, suite))]
    if missing:
        raise AssertionError('no root of ' + ', '.join(missing))


class Front(http.server.ThreadingHTTPServer):
    """https for the names of Let's Encrypt, by certificates of a CA of its own (`root`, a file), in
    front of a Pebble: only the path of the directory is another."""
    daemon_threads = True

    def __init__(self, folder, pebble):
        self.pebble, self.root = pebble, os.path.join(folder, 'root.pem')
        key, csr, crt = [os.path.join(folder, name) for name in ('root.key', 'csr', 'crt')]
        new = ['req', '-newkey', 'rsa:2048', '-nodes']
        openssl(*new, '-x509', '-keyout', key, '-out', self.root, '-subj', '/CN=Root', '-days', '9',
                '-addext', 'keyUsage=critical,keyCertSign,cRLSign')
        openssl(*new, '-keyout', csr + '.key', '-out', csr, '-subj', '/')
        write(csr + '.ext', 'subjectAltName=critical,%s\nauthorityKeyIdentifier=keyid\n'
              'subjectKeyIdentifier=hash\n' % ','.join('DNS:' + name for name in CAS))
        openssl('x509', '-req', '-in', csr, '-CA', self.root, '-CAkey', key, '-CAcreateserial',
                '-days', '9', '-extfile', csr + '.ext', '-out', crt)
        super().__init__((NET, 443), self.handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(crt, csr + '.key')
        self.socket = context.wrap_socket(self.socket, server_side=True,
                                          do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handler(self):
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
                context = ssl.create_default_context(cafile=front.pebble.bundle)
                there = http.client.HTTPSConnection('127.0.0.1', front.pebble.port, timeout=60,
                                                    context=context)
                path = {'/directory': '/dir'}.get(self.path, self.path)
                there.request(self.command, path, body, dict(self.headers.items()))
                answer = there.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name not in ('Content-Length', 'Transfer-Encoding', 'Connection'):
                        self.send_header(name, value)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(b'' if self.command == 'HEAD' else data)
                there.close()

            do_POST = do_HEAD = do_GET

            def log_message(self, *args):
                """Pebble has a log."""

        return Handler


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        place = tempfile.TemporaryDirectory(prefix='roots-')
        cls.addClassCleanup(place.cleanup)
        cls.ca = Pebble(place.name, httpPort=80).start()
        cls.addClassCleanup(cls.ca.stop)
        cls.ca.manage_dns('/add-a', {'host': NAME + '.', 'addresses': [MACHINE]})
        cls.front = Front(place.name, cls.ca)
        cls.addClassCleanup(cls.front.server_close)
        cls.addClassCleanup(cls.front.shutdown)

    def enter(self, suite):
        """A fresh machine of a suite; the path of its root."""
        place = tempfile.mkdtemp(prefix='root-')
        self.addCleanup(os.rmdir, place)
        run('mount', '-t', 'tmpfs', 'none', place)
        self.addCleanup(run, 'umount', '-l', place)
        upper, work, root = [os.path.join(place, name) for name in ('upper', 'work', 'root')]
        for folder in upper, work, root:
            os.mkdir(folder)
        run('mount', '-t', 'overlay', 'none', '-o', 'lowerdir=%s,upperdir=%s,workdir=%s' % (
            os.path.join(os.environ['ROOTS'], suite), upper, work), root)
        for kind, folder in ('proc', 'proc'), ('devtmpfs', 'dev'):
            run('mount', '-t', kind, 'none', os.path.join(root, folder))
            self.addCleanup(run, 'umount', '-l', os.path.join(root, folder))
        self.addCleanup(self.end_all, root)
        shutil.copy(self.front.root,
                    os.path.join(root, 'usr/local/share/ca-certificates/test.crt'))
        write(os.path.join(root, 'etc/hosts'), ''.join(
            '%s %s\n' % (address, name) for address, name in (
                ('127.0.0.1', 'localhost'), (MACHINE, NAME), (NET, CAS[0]), (NET, CAS[1]))))
        write(os.path.join(root, 'etc/resolv.conf'), '')
        os.makedirs(os.path.join(root, 'etc/cron.d'), exist_ok=True)    # cron needs an init system
        self.root = root
        self.sh('update-ca-certificates')
        return root

    def end_all(self, root):
        """End the services that were started in a root."""
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.path.realpath('/proc/%s/root' % pid) == root:
                    os.kill(int(pid), 9)
            except OSError:
                pass

    def sh(self, script, *, folder='/root', env=None):
        """Run a shell script there as root's shell would; all that it prints."""
        usual = {'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
                 'HOME': '/root'}
        given = ['%s=%s' % pair for pair in (env or usual).items()]
        return run(*ON_MACHINE, 'chroot', self.root, '/usr/bin/env', '-i', *given, '/bin/sh',
                   '-euc', 'cd %s\n%s' % (folder, script), timeout=2 * PATIENCE)

    def shown(self):
        """The certificate (PEM) that the web server shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((MACHINE, 443), 10) as plain:
            with context.wrap_socket(plain, server_hostname=NAME) as sock:
                return ssl.DER_cert_to_PEM_cert(sock.getpeercert(True))


def steps(server):
    """The commands of the README's four steps for one of the web servers, one text a block."""
    text = read(os.path.join(ROOT, 'README.md')).decode()
    section = text.split('\n## Four steps\n')[1].split('\n## ')[0]
    blocks = re.findall(r'(?m)^(\S.*?)\n\n((?:    .*\n)+)', section)
    found = []
    for words, block in blocks:
        only = [ONLY[word] for word in ONLY if words.rstrip(':').endswith(word)]
        if only in ([], [server]):
            found.append(re.sub('(?m)^    ', '', block))
    return found


class FourSteps(Case):
    def check(self, suite, server):
        root = self.enter(suite)
        shutil.copytree(os.path.join(ROOT, 'examples'), os.path.join(root, 'root/examples'))
        for name in 'letsencrypt_tiny.py', 'acme_tiny.py':
            shutil.copy(os.path.join(ROOT, name), os.path.join(root, 'root'))
        self.sh('service %s start' % server)    # as after its installation
        blocks = steps(server)
        self.assertEqual(blocks[0], 'NAME=www.example.org\n')
        self.assertGreaterEqual(len(blocks), 7)
        said = self.sh('\n'.join(['NAME=' + NAME] + blocks[1:]))
        self.assertIn('Nothing is wrong', said)
        self.assertEqual(said.count('Obtaining certificate'), 2)
        live = read(os.path.join(root, 'etc/ssl/letsencrypt/live.crt')).decode()

        def served():
            try:
                return self.shown() in live
            except OSError:
                return False
        wait_for(served, 20, 'the certificate')
        # As cron runs it: the words after `root` in its file, with its own environment
        entry = read(os.path.join(root, 'etc/cron.d/letsencrypt-tiny')).decode()
        command = entry.split(' root ')[1]
        self.assertRegex(entry, r'\A[0-9]+ \*/6 \* \* \*  root  /usr/local/sbin/')
        cron = {'PATH': '/usr/bin:/bin', 'HOME': '/root', 'SHELL': '/bin/sh', 'LOGNAME': 'root'}
        self.assertEqual(self.sh(command, env=cron), '')
        # And a renewal by cron, which reloads the server
        self.sh('rm /etc/ssl/letsencrypt/live.crt')
        self.assertIn('Running post-certchange', self.sh(command, env=cron))
        live = read(os.path.join(root, 'etc/ssl/letsencrypt/live.crt')).decode()
        wait_for(served, 20, 'the next certificate')


class Life(Case):
    """The single file, with every warning an error."""

    def check(self, suite):
        root = self.enter(suite)
        built = subprocess.run([sys.executable, os.path.join(ROOT, 'examples/single-file'), ROOT],
                               stdout=subprocess.PIPE, check=True).stdout
        program = write(os.path.join(root, 'usr/local/sbin/letsencrypt-tiny'), built, 0o755)
        self.assertTrue(program)
        write(os.path.join(root, 'root/hook'), '#!/bin/sh\necho "$HOOK" >> /root/log\n', 0o755)
        write(os.path.join(root, 'root/line.conf'), '''domains = %s
max-key-age-days = 365
staging-hours = 0.0005
post-certchange = /root/hook
post-keychange = /root/hook
account-key = /root/account.key
challenge-dir = /srv/acme-challenge
certs = /etc/ssl/letsencrypt
keys = /etc/ssl/private/letsencrypt
backups = /var/backups/letsencrypt
run-as = nobody
''' % NAME)
        os.makedirs(os.path.join(root, 'srv/.well-known'))
        os.symlink('../acme-challenge', os.path.join(root, 'srv/.well-known/acme-challenge'))
        os.mkdir(os.path.join(root, 'srv/acme-challenge'))
        web = subprocess.Popen([*ON_MACHINE, 'chroot', root, 'python3', '-m', 'http.server', '80', '--directory',
                                '/srv'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(web.wait)
        self.addCleanup(web.kill)

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex((MACHINE, 80)) == 0
        wait_for(listens, 20, 'the web server')
        line = 'python3 -W error -X dev -IS /usr/local/sbin/letsencrypt-tiny -c /root/line.conf -k '
        versions = self.sh('openssl version; python3 --version')
        self.sh(line + 'check')
        self.assertIn('Next: let services use it', self.sh(line + 'init'))
        self.assertEqual(self.sh(line + 'cron'), '')
        self.assertIn('Obtaining', self.sh(line + 'renew'))
        self.assertIn('Making a new private key', self.sh(line + 'renew --new-key'))
        wait_for(lambda: "Making 'staging' live" in self.sh(line + 'cron'), 20, 'the rollover')
        self.assertEqual(self.sh(line + 'cron'), '')
        self.sh(line + 'status')
        self.sh('openssl x509 -in /etc/ssl/letsencrypt/live.crt -noout -pubkey > /root/a\n'
                'openssl pkey -in /etc/ssl/private/letsencrypt/live.key -pubout > /root/b\n'
                'cmp /root/a /root/b')
        print('%s: %s' % (suite, versions.replace('\n', '; ')))


def make_network():
    """The machine's network, of a process that only holds it, and a cable to ours; the command that
    runs another one there."""
    holder = subprocess.Popen(['unshare', '-n', 'sleep', 'infinity'])
    there = '/proc/%d/ns/net' % holder.pid
    wait_for(lambda: os.readlink(there) != os.readlink('/proc/self/ns/net'), 20, 'a network')
    command = ['nsenter', '--net=' + there]
    run('ip', 'link', 'add', 'net', 'type', 'veth', 'peer', 'name', 'machine', 'netns',
        str(holder.pid))
    for words, name, address in ([], 'net', NET), (command, 'machine', MACHINE):
        run(*words, 'ip', 'address', 'add', address + '/24', 'dev', name)
        for one in 'lo', name:
            run(*words, 'ip', 'link', 'set', one, 'up')
    return holder, command


def add_tests():
    """One test for each suite, and each web server."""
    for suite in FRESH:
        for server in ONLY.values():
            setattr(FourSteps, 'test_%s_%s' % (suite, server),
                    lambda self, suite=suite, server=server: self.check(suite, server))
    for suite in ENDS:
        setattr(Life, 'test_' + suite, lambda self, suite=suite: self.check(suite))


add_tests()
if __name__ == '__main__':
    if '--install' in sys.argv:
        run('apt-get', '-qq', 'install', '-y', '--no-install-recommends', 'debootstrap', 'iproute2',
            env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})
        sys.exit()
    if '--inside' not in sys.argv:
        kept = os.environ.get('ROOTS') or tempfile.mkdtemp(prefix='roots-')
        try:
            make_roots(kept)
            # A network and mounts of its own
            sys.exit(subprocess.call(
                ['unshare', '-mn', sys.executable, os.path.abspath(__file__), '--inside',
                 *sys.argv[1:]], env={**os.environ, 'ROOTS': kept}))
        finally:
            if 'ROOTS' not in os.environ:
                shutil.rmtree(kept)
    sys.argv.remove('--inside')
    process, ON_MACHINE = make_network()
    try:
        unittest.main()
    finally:
        process.kill()
