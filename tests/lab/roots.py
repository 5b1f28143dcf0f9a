#!/usr/bin/env python3
"""Fresh Debian machines: the README's four steps exactly as they stand, with nginx and with apache
as they come; real services with the examples' config, which get new certificates without one
refused handshake; and a line's life with the oldest and the newest Python and OpenSSL.

    python3 tests/lab/roots.py --install        the Debian packages that are needed, as root
    python3 tests/lab/roots.py [SUITE...]       as root: trixie, bookworm, sid, bullseye, or some

Roots are made from the mirror that this machine uses, in ROOTS=FOLDER, where they stay, or in
memory. Each test works in an overlay of one, in namespaces of its own: nothing is left when this
program ends, however it ends. Beyond that, it needs what tests/lab/pebble.py needs.

In the four steps, the name is another one, and nothing is arranged inside but a copy of this tree
as the current folder, and a root certificate that the machine trusts. It has an address and a name
server, by which the names of Let's Encrypt's two CAs lead to two Pebbles, and its own to itself.
"""
import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.lab.pebble import Pebble, judge
from tests.world.fake_ca import FakeCA
from tests.world.line import Line
from tests.world.support import (
    PATIENCE, ROOT, cert_names, free_port, mode, openssl, read, spki, wait_for, write)

HERE = os.path.abspath(__file__)
NEEDED = 'iproute2', 'mmdebstrap', 'util-linux'
SERVERS = {'nginx': 'nginx', 'apache': 'apache2'}   # name in the README -> package and service
FRESH, ENDS = ('trixie', 'bookworm'), ('sid', 'bullseye')
PACKAGES = 'python3,openssl,ca-certificates,cron'
WITH_SERVICES = 'bookworm'
SERVICES = 'nginx', 'apache2', 'postfix', 'dovecot', 'haproxy', 'prosody'
MORE_PACKAGES = 'ssl-cert', 'postfix', 'dovecot-imapd', 'haproxy', 'prosody'
SECTION, FIRST = 'Four steps', 'NAME=www.example.org\n'     # the README's, and its first command
NAME, MORE = 'www.my.test', 'alt.my.test'
STAGING, REAL = 'acme-staging-v02.api.letsencrypt.org', 'acme-v02.api.letsencrypt.org'
WORLD, MACHINE = '192.0.2.1', '192.0.2.80'      # for examples, so that nobody else has them
PROGRAM = '/usr/local/sbin/letsencrypt-tiny'
LOGIN = {'HOME': '/root', 'LANG': 'C.UTF-8', 'LOGNAME': 'root', 'SHELL': '/bin/bash',
         'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'}
CRON = {'HOME': '/root', 'LOGNAME': 'root', 'SHELL': '/bin/sh', 'PATH': '/usr/bin:/bin'}

VERSIONS = '. /etc/os-release; echo "$PRETTY_NAME"; openssl version; python3 --version'

# The first process of a machine. It tells its number outside, then waits for what daemons leave.
BOOT = '''read -r pid rest < /proc/self/stat
echo fresh > /proc/sys/kernel/hostname
mount -t proc proc "$1/proc"
echo "$pid"
exec chroot "$1" /bin/sh -c 'while sleep 1000; do :; done'
'''


def run(*command, status=0, **options):
    """Run a command and return what it printed; AssertionError if its exit status is another."""
    options = {'stdin': subprocess.DEVNULL, 'stderr': subprocess.STDOUT, 'timeout': 600, **options}
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True, **options)
    if done.returncode != status:
        raise AssertionError('%s: exit status %d\n%s' % (
            ' '.join(command), done.returncode, done.stdout))
    return done.stdout


# ---- roots --------------------------------------------------------------------------------------

def make_root(suite):
    """The folder of a root, made if need be."""
    path = os.path.join(os.environ['ROOTS'], suite)
    if os.path.exists(path):
        return path
    mirror = run('apt-get', 'indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages',
                 'Label: Debian').split()[0]
    # A mirror that is behind, or a clock that is, is a matter of this machine's own settings.
    options = ['--aptopt=' + line for line in run('apt-config', 'dump').splitlines()
               if line.startswith('Acquire::Check-')]
    if suite in FRESH:
        # To be installed later, by the machine itself, which has no way to the mirror
        names = [*SERVERS.values(), *(MORE_PACKAGES if suite == WITH_SERVICES else ())]
        options += ['--skip=cleanup/apt', '--customize-hook=chroot "$1" apt-get -qq --download-only'
                    ' --no-install-recommends install ' + ' '.join(names)]
    part = path + '.part'
    shutil.rmtree(part, ignore_errors=True)
    run('mmdebstrap', '--mode=root', '--variant=minbase', '--include=' + PACKAGES, *options, suite,
        part, mirror)
    os.rename(part, path)
    return path


class Machine:
    """A root in use. With `net`, it has a network of its own, in which nobody is yet."""

    def __init__(self, suite, net):
        place = tempfile.mkdtemp(prefix='machine-')
        os.chmod(place, 0o755)
        self.root, upper, work = [os.path.join(place, name) for name in ('root', 'upper', 'work')]
        for folder in self.root, upper, work:
            os.mkdir(folder, 0o755)
        run('mount', '-t', 'overlay', 'machine', '-o', 'lowerdir=%s,upperdir=%s,workdir=%s' % (
            make_root(suite), upper, work), self.root)
        command = ['unshare', '--mount', '--pid', '--uts', '--kill-child', '--fork']
        self.first = subprocess.Popen(
            command + ['--net'] * net + ['sh', '-euc', BOOT, 'sh', self.root],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, universal_newlines=True)
        self.pid = self.first.stdout.readline().strip()
        self.write('etc/hosts', '127.0.0.1 localhost\n127.0.1.1 fresh.my.test fresh\n')

    def end(self):
        self.first.kill()
        self.first.communicate()
        run('umount', self.root)

    def path(self, path):
        """Where a file of this machine is."""
        return os.path.join(self.root, path.lstrip('/'))

    def write(self, path, data, mode=0o644):
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        return write(self.path(path), data, mode)

    def command(self, *command, env=None):
        """A command to be run there, as one to be run here."""
        words = ['%s=%s' % pair for pair in (env or LOGIN).items()]
        return ['nsenter', '--target', self.pid, '--mount', '--uts', '--net', '--pid', 'chroot',
                self.root, 'env', '-i', *words, *command]

    def run(self, *command, env=None, **options):
        return run(*self.command(*command, env=env), **options)

    def sh(self, script, env=None, **options):
        return self.run('/bin/sh', '-ec', script, env=env, **options)


# ---- the four steps -----------------------------------------------------------------------------

class Front(http.server.ThreadingHTTPServer):
    """https for the names of CAs, by a certificate of `root` (a file), before their Pebbles: {name:
    Pebble}. Only the path of the directory is another."""
    daemon_threads = True

    def __init__(self, folder, pebbles):
        self.pebbles, self.root = pebbles, os.path.join(folder, 'root.pem')
        key, csr, crt, ext, root_key = [os.path.join(folder, 'front.' + name) for name in (
            'key', 'csr', 'crt', 'ext', 'root.key')]
        new = ['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
        openssl(*new, '-x509', '-keyout', root_key, '-out', self.root, '-subj', '/CN=Root of tests',
                '-days', '9', '-addext', 'keyUsage=critical,keyCertSign')
        openssl(*new, '-keyout', key, '-out', csr, '-subj', '/CN=front')
        write(ext, 'subjectAltName=%s\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' %
              ','.join('DNS:' + name for name in pebbles))
        openssl('x509', '-req', '-in', csr, '-CA', self.root, '-CAkey', root_key, '-set_serial',
                '2', '-days', '9', '-extfile', ext, '-out', crt)
        super().__init__((WORLD, 443), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(crt, key)
        self.socket = context.wrap_socket(self.socket, server_side=True,
                                          do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        pebble = self.server.pebbles[self.headers['Host']]
        there = http.client.HTTPSConnection(
            '127.0.0.1', pebble.port, timeout=PATIENCE,
            context=ssl.create_default_context(cafile=pebble.bundle))
        with contextlib.closing(there):
            there.request(self.command, {'/directory': '/dir'}.get(self.path, self.path), body,
                          dict(self.headers.items()))
            answer = there.getresponse()
            data = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ('connection', 'content-length', 'transfer-encoding'):
                self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_HEAD = do_GET

    def log_message(self, *args):
        """Pebble has a log."""


class World:
    """What there is besides the machine: the network, its name server, the CAs. This process must
    be in a network of its own."""

    def __init__(self, machine):
        self.folder = tempfile.mkdtemp(prefix='world-')
        inside = 'nsenter', '--target', machine.pid, '--net'
        for command in ('ip link set lo up',
                        'ip link add world type veth peer name eth0 netns ' + machine.pid,
                        'ip address add %s/24 dev world' % WORLD, 'ip link set world up'):
            run(*command.split())
        for command in ('ip link set lo up', 'ip address add %s/24 dev eth0' % MACHINE,
                        'ip link set eth0 up'):
            run(*inside, *command.split())
        self.pebbles = {}
        for name in STAGING, REAL:
            place = os.path.join(self.folder, name)
            os.mkdir(place)
            pebble = self.pebbles[name] = Pebble(
                place, {'PEBBLE_WFE_NONCEREJECT': '5'}, httpPort=80).start()
            pebble.manage_dns('/set-default-ipv4', {'ip': MACHINE})
        # Another name server like theirs, for the machine
        management = free_port()
        pebble.spawn('machine-dns.log', 'pebble-challtestsrv', '-dnsserver', WORLD + ':53',
                     '-management', '127.0.0.1:%d' % management, '-defaultIPv4', MACHINE,
                     '-defaultIPv6', '', '-http01', '', '-https01', '', '-tlsalpn01', '',
                     '-doh', '')
        for address in (WORLD, 53), ('127.0.0.1', management):
            wait_for(lambda address=address: listens(*address), PATIENCE, 'name server')
        for name in self.pebbles:
            connection = http.client.HTTPConnection('127.0.0.1', management, timeout=PATIENCE)
            connection.request('POST', '/add-a', json.dumps({'host': name, 'addresses': [WORLD]}))
            if connection.getresponse().status != 200:
                raise AssertionError('the name server refuses ' + name)
            connection.close()
        machine.write('etc/resolv.conf', 'nameserver %s\n' % WORLD)
        self.front = Front(self.folder, self.pebbles)

    def end(self):
        self.front.shutdown()
        self.front.server_close()
        for pebble in self.pebbles.values():
            pebble.stop()


def listens(host, port):
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), 1).close()
        return True
    return False


def steps(server):
    """The commands of the README's section, with this web server: a script. A block is for one of
    them alone if the words before it end with its name and a colon."""
    text = read(os.path.join(ROOT, 'README.md')).decode()
    section = text.split('\n## %s\n' % SECTION)[1].split('\n## ')[0]
    blocks, words = [], ''
    for line in section.splitlines():
        if line.startswith('    '):
            only = re.search(r'(\w+):$', words)
            if not only or only[1] not in SERVERS or only[1] == server:
                blocks.append(line[4:] + '\n')
        elif line:
            words = line
    return ''.join(blocks)


class Job(unittest.TestCase):
    """One test's work, in a process with a network of its own."""
    maxDiff = None

    def begin(self, suite, server, *packages):
        """A machine on which this web server runs, as after its installation."""
        self.machine = machine = Machine(suite, net=True)
        self.addCleanup(machine.end)
        self.world = World(machine)
        self.addCleanup(self.world.end)
        shutil.copytree(ROOT, machine.path('root/letsencrypt-tiny'),
                        ignore=shutil.ignore_patterns('.git', '__pycache__'))
        machine.write('usr/local/share/ca-certificates/tests.crt', read(self.world.front.root))
        machine.run('update-ca-certificates')
        machine.run('apt-get', '-qq', '-y', '--no-install-recommends', 'install', SERVERS[server],
                    *packages, env={**LOGIN, 'DEBIAN_FRONTEND': 'noninteractive'})
        machine.run('service', SERVERS[server], 'start')
        return machine

    def four_steps(self, suite, server):
        machine = self.begin(suite, server)
        stock = wait_for(self.http, PATIENCE, 'the stock site')
        self.assertEqual(stock[0], 200)

        script = steps(server)
        self.assertTrue(script.startswith(FIRST), script)
        said = machine.sh('cd /root/letsencrypt-tiny\nNAME=%s\n%s' % (NAME, script[len(FIRST):]))
        print(said)     # all of it, if this or what follows fails
        self.assertEqual(said.count('Obtaining certificate'), 2, said)
        self.check_live([NAME])
        # The first site is still there, and the name's own is beside it
        self.assertEqual(self.http('other.test'), stock)
        if server == 'nginx':
            wait_for(lambda: (self.http() or ())[:2] == (301, 'https://%s/' % NAME), 20,
                     'the way to https')

        # What step 4 made is what cron takes
        place = machine.path('etc/cron.d/letsencrypt-tiny')
        entry = read(place).decode()
        found = re.match(r'[0-5]?[0-9] \*/6 \* \* \*  root  (%s .*)\n\Z' % PROGRAM, entry)
        self.assertTrue(found, entry)
        self.assertEqual((mode(place), os.stat(place).st_uid), (0o644, 0))
        self.assertEqual(machine.sh(found[1], env=CRON), '')
        # ... and does: a name more
        config = machine.path('etc/letsencrypt-tiny/%s.conf' % NAME)
        text = read(config).decode()
        self.assertEqual(text.count('\n  %s\n' % NAME), 1)
        write(config, text.replace('\n  %s\n' % NAME, '\n  %s\n  %s\n' % (NAME, MORE)))
        if server == 'nginx':
            config = machine.path('etc/nginx/conf.d/letsencrypt-tiny.conf')
            text = read(config).decode()
            self.assertIn('server_name %s;' % NAME, text)
            write(config, text.replace('server_name %s;' % NAME, 'server_name %s %s;' % (
                NAME, MORE)))
            machine.sh('service nginx restart')
            wait_for(lambda: self.http(MORE), 20, 'nginx')
        said = machine.sh(found[1], env=CRON)
        self.assertRegex(said, r"\AObtaining certificate 'live' for [^\n]*\n"
                         r"Running post-certchange[^\n]*\n\Z")
        self.check_live([NAME, MORE])
        self.assertEqual(machine.sh(found[1], env=CRON), '')
        machine.run(*found[1].split()[:3], 'status', env=CRON)
        print(machine.sh(VERSIONS).strip().replace('\n', '; '))

    def http(self, name=NAME):
        """(status, Location, content) of the first page; None if nobody answers."""
        connection = http.client.HTTPConnection(MACHINE, 80, timeout=PATIENCE)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request('GET', '/', headers={'Host': name})
            answer = connection.getresponse()
            return answer.status, answer.getheader('Location'), answer.read()

    def check_live(self, names):
        """The live pair is good, by the real CA, and what the server shows to all who trust it."""
        self.ca, self.folder = self.world.pebbles[REAL], self.world.folder
        key, crt = [self.machine.path('etc/ssl/' + name) for name in (
            'private/letsencrypt/live.key', 'letsencrypt/live.crt')]
        judge(self, read(crt), key, names)
        self.assertEqual((mode(key), mode(os.path.dirname(key)), mode(crt)),
                         (0o600, 0o710, 0o644))
        leaf = ssl.PEM_cert_to_DER_cert(read(crt).decode().split('-----END')[0] +
                                        '-----END CERTIFICATE-----\n')
        context = ssl.create_default_context(cadata=self.ca.get('/roots/0'))

        def shown(name):
            with contextlib.suppress(OSError), socket.create_connection(
                    (MACHINE, 443), PATIENCE) as plain, context.wrap_socket(
                        plain, server_hostname=name) as sock:
                return sock.getpeercert(True)

        # A server that was told to reload does that when it comes to it
        for name in names:
            wait_for(lambda name=name: shown(name) == leaf, 20, 'the new certificate in use')

    # ---- services -------------------------------------------------------------------------------

    def services(self, suite):
        """All show the line's certificate, and the next one after a renewal and after a rollover,
        and no handshake fails meanwhile."""
        machine = self.begin(suite, 'nginx', SERVERS['apache'], *MORE_PACKAGES)
        first = steps('nginx').partition('sed -i "s/^#tls')[0][len(FIRST):]
        print(machine.sh('cd /root/letsencrypt-tiny\nNAME=%s\n%s%s' % (NAME, first, SET_UP)))
        program = '%s -c /etc/letsencrypt-tiny/%s.conf -k ' % (PROGRAM, NAME)
        live = machine.path('etc/ssl/letsencrypt/live.crt')
        probes = Probes()

        def leaf():
            return read(live).decode().partition('-----END')[0]

        def wait_until_all_show_it(after):
            def late():
                return [name for name in SERVICES if leaf() not in probes.shown.get(name, '')]
            try:
                wait_for(lambda: not late(), 40, 'services after ' + after)
            except AssertionError as error:
                raise AssertionError('%s: %s; %s' % (error, late(), probes.failures)) from None

        for name in SERVICES:
            wait_for(lambda name=name: probes.look(name), 60, name)
        self.addCleanup(probes.end)
        probes.start()
        wait_until_all_show_it('their start')
        seen = {leaf()}
        print(machine.sh(program + 'renew'))
        wait_until_all_show_it('a renewal')
        seen.add(leaf())
        machine.sh('sed -i "s/^staging-hours = .*/staging-hours = 0.001/" /etc/letsencrypt-tiny/*f')
        print(machine.sh(program + 'renew --new-key'))
        wait_for(lambda: "Making 'staging' live" in machine.sh(program + 'cron'), 60, 'the switch')
        wait_until_all_show_it('a rollover')
        seen.add(leaf())
        self.assertEqual(len(seen), 3)
        probes.end()
        self.assertEqual(probes.failures, [])
        self.assertEqual(machine.sh(program + 'cron'), '')
        print('%d handshakes with %s' % (probes.count, ', '.join(SERVICES)))

    # ---- the ends -------------------------------------------------------------------------------

    def life(self, suite):
        run('ip', 'link', 'set', 'lo', 'up')
        machine = Machine(suite, net=False)
        self.addCleanup(machine.end)
        built = os.environ.get('LETSENCRYPT_TINY')
        machine.write(PROGRAM, read(built) if built else subprocess.check_output(
            [sys.executable, os.path.join(ROOT, 'examples', 'single-file'), ROOT]), 0o755)
        versions = machine.sh(VERSIONS)
        ca = FakeCA().start()
        self.addCleanup(ca.stop)
        bundle = machine.write('etc/ssl/tests.pem', read(ca.bundle))
        with Line(ca, ca_bundle=bundle[len(machine.root):], staging_hours=0.0005) as line:
            self.live(machine, ca, line)
        print(versions.strip().replace('\n', '; '))

    def live(self, machine, ca, line):
        """What the program does in its life, with every warning an error and nothing said on
        standard error."""
        # The line's folder has the same place there
        there = machine.path(line.folder.name)
        os.makedirs(there)
        run('nsenter', '--target', machine.pid, '--mount', 'mount', '--bind', line.folder.name,
            there)
        line.program = machine.command('/usr/bin/python3', '-W', 'error', '-X', 'dev', '-IS',
                                       PROGRAM)
        for hook in 'post-certchange', 'post-keychange':
            line.hook(hook)

        def do(*args, status=0):
            hooks = args[0] in ('init', 'cron', 'renew')
            done = line.run(*args, real=True, hooks=hooks, check=status)
            self.assertEqual(done.stderr, '', args)
            return done.stdout

        self.assertIn("Obtaining certificate 'live' for example.org", do('init'))
        self.assertEqual(line.log(), ['post-certchange', 'post-keychange'])
        self.assertEqual((do('init'), do('cron')), (do('init'), ''))
        key, crt = read(line.key()), read(line.crt())
        self.assertIn('Obtaining', do('renew'))
        self.assertEqual(read(line.key()), key)
        self.assertNotEqual(read(line.crt()), crt)
        self.assertIn("Obtaining certificate 'staging'", do('renew', '--new-key'))
        self.assertEqual(read(line.key()), key)
        new = read(line.key('staging'))
        # The staging time is seconds here, so that the switch is soon, or was done by now
        wait_for(lambda: do('cron') and read(line.key()) == new, PATIENCE, 'the switch')
        self.assertEqual(do('cron'), '')
        self.assertEqual(spki(line.key()), spki(line.crt()))
        self.assertEqual(cert_names(line.crt()), ['example.org'])
        self.assertIn(key, [read(line.path('backups', name))
                            for name in os.listdir(line.path('backups'))])
        for command in 'status', 'status --json', 'account', 'revoke':
            self.assertTrue(do(*command.split()), command)
        self.assertIn('The CA answers.', do('check', status=1))     # but the name has no address
        # For another user's process there is no such option as -W; it says nothing either
        line.set(run_as='nobody')
        for kind in 'rsa', 'ec-p384':
            line.set(key_type=kind)
            self.assertIn('Obtaining', do('renew', '--new-key', '--now'))
            self.assertEqual(spki(line.key()), spki(line.crt()))
        self.assertEqual(do('cron'), '')


# How each gets its config, as its example says. Only ports differ, for all are on one machine:
# apache at 81 and 444, haproxy at 8443.
SET_UP = r'''
sed -i "s/^#tls //" /etc/nginx/conf.d/letsencrypt-tiny.conf
service nginx reload
sed -i 's/80/81/; s/443/444/' /etc/apache2/ports.conf
sed -i 's/:80>/:81>/' /etc/apache2/sites-available/000-default.conf
sed "s/www.example.org/$NAME/; s/:443/:444/; s/^#tls //" examples/apache.conf \
    > /etc/apache2/conf-available/letsencrypt-tiny.conf
a2enmod -q ssl
a2enconf -q letsencrypt-tiny
cp examples/dovecot.conf /etc/dovecot/conf.d/99-letsencrypt-tiny.conf
sed 's/:443/:8443/' examples/haproxy.cfg >> /etc/haproxy/haproxy.cfg
sed -n 's/^#     //p' examples/postfix.cf | head -n 1 | sh -e
sed "s/www.example.org/$NAME/" examples/prosody.cfg.lua \
    > /etc/prosody/conf.d/letsencrypt-tiny.cfg.lua
sed -n 's/^--     //p' examples/prosody.cfg.lua | sh -e
for name in apache2 dovecot haproxy postfix prosody; do
    service $name start > /var/log/start-$name 2>&1 < /dev/null
done
'''
HELLO = ("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' "
         "to='%s' version='1.0'>" % NAME).encode()
START = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
# Port, and the talk before TLS: (what is waited for, what is said then)
TALKS = {
    'nginx': (443,), 'apache2': (444,), 'haproxy': (8443,), 'dovecot': (993,),
    'postfix': (25, (b'220 ', b'EHLO probe\r\n'), (b'250 ', b'STARTTLS\r\n'), (b'220 ', b'')),
    'prosody': (5222, (b'', HELLO), (b'</stream:features>', START), (b'<proceed', b''))}


class Probes(threading.Thread):
    """Handshakes with all services, one after the other, all the time. shown: {service: the last
    certificate (PEM)}; failures: list of texts."""

    def __init__(self):
        super().__init__(daemon=True)
        self.shown, self.failures, self.count, self.over = {}, [], 0, threading.Event()

    def run(self):
        while not self.over.wait(.02):
            for name in SERVICES:
                self.count += 1
                try:
                    self.shown[name] = self.handshake(*TALKS[name])
                except (OSError, EOFError) as error:
                    self.failures.append('%s: %r' % (name, error))

    def end(self):
        self.over.set()
        self.join()

    def look(self, name):
        """What a service shows, None if it does not yet."""
        with contextlib.suppress(OSError, EOFError):
            return self.handshake(*TALKS[name])

    def handshake(self, port, *talk):
        """The certificate (PEM) that a service shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((MACHINE, port), PATIENCE) as plain:
            for awaited, text in talk:
                heard = b''
                while awaited not in heard:
                    more = plain.recv(4096)
                    if not more:
                        raise EOFError('it hangs up')
                    heard += more
                plain.sendall(text)
            with context.wrap_socket(plain, server_hostname=NAME) as sock:
                return ssl.DER_cert_to_PEM_cert(sock.getpeercert(True))


# ---- all of it ----------------------------------------------------------------------------------

def jobs(suite):
    """[(name of a test, words for --job)]"""
    if suite in ENDS:
        return [('life', ['life', suite])]
    more = [('services', ['services', suite])] if suite == WITH_SERVICES else []
    return more + [('four_steps_with_' + server, ['four_steps', suite, server])
                   for server in SERVERS]


def perform(suite):
    """Make a root and do its jobs; {name: (exit status, output)}."""
    make_root(suite)
    done = {}
    for name, words in jobs(suite):
        one = subprocess.run(
            ['unshare', '--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc',
             sys.executable, HERE, '--job', *words], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=600)
        done[name] = one.returncode, one.stdout
    return done


def perform_all(suites):
    """Work at all suites, and tell by tests. Returns whether all is well."""
    os.umask(0o022)
    with concurrent.futures.ThreadPoolExecutor(len(suites)) as pool:
        futures = {suite: pool.submit(perform, suite) for suite in suites}

        class Roots(unittest.TestCase):
            def check(self, suite, name):
                status, output = futures[suite].result()[name]
                if status:
                    self.fail('\n' + output)
                sys.stderr.write(output.splitlines()[-1] + ' ... ')

        Roots.__qualname__ = Roots.__name__
        for suite in suites:
            for name, _ in jobs(suite):
                setattr(Roots, 'test_%s_%s' % (suite, name), lambda self, suite=suite, name=name:
                        self.check(suite, name))
        tests = unittest.defaultTestLoader.loadTestsFromTestCase(Roots)
        return unittest.TextTestRunner(verbosity=2).run(tests).wasSuccessful()


def job(words):
    """One test's work; an exit status."""
    case = Job()
    try:
        getattr(case, words[0])(*words[1:])
        return 0
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        case.doCleanups()


def unshare(suites):
    """Run this program in namespaces of its own, which end with it. Returns its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # In /run, as all that leads to it belongs to root and may be entered by everyone.
    folder = tempfile.mkdtemp(prefix='roots-', dir='/run')
    try:
        return subprocess.run(
            ['setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--pid', '--fork',
             '--kill-child', '--mount-proc', sys.executable, HERE, '--inside', *suites],
            env={'ROOTS': folder, **os.environ, 'TMPDIR': folder}).returncode
    finally:
        os.rmdir(folder)


def main(args):
    if args == ['--install']:
        run('apt-get', '-qq', 'install', '-y', '--no-install-recommends', *NEEDED,
            env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})
        return 0
    if args[:1] == ['--job']:
        return job(args[1:])
    inside = args[:1] == ['--inside']
    suites = args[inside:] or [*FRESH, *ENDS]
    if not set(suites) <= {*FRESH, *ENDS}:
        sys.exit('roots.py: suites are ' + ', '.join([*FRESH, *ENDS]))
    if not inside:
        return unshare(suites)
    run('mount', '-t', 'tmpfs', '-o', 'mode=755', 'roots', os.environ['TMPDIR'])
    return 0 if perform_all(suites) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
