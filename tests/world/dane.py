"""What the tests of DANE share: zones, and lines whose next key is in different stages of its
rollover, made once."""
import contextlib
import json
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
import unittest

from tests.world.fake_ca import FakeCA
from tests.world.fake_dns import FakeDNS, read_zone
from tests.world.line import CERTCHANGE, DAY, HOUR, KEYCHANGE, Line as AnyLine
from tests.world.support import PATIENCE, PROGRAM, read, spki, write

NAME, OTHER, HOST = '_25._tcp.mx.example.org', '_443._tcp.www.example.org', 'mx.example.org'
LATE = DAY + 2 * HOUR       # when a staged key may go live, and what was told today is told again

# The zones without their TLSA records; nobody listens on these addresses.
BASE = '''
example.org 60 SOA ns1.example.org hostmaster.example.org 1 3600 600 86400 60
example.org 60 NS ns1.example.org
example.org 60 NS ns2.example.org
ns1.example.org 60 A 127.0.0.11
ns2.example.org 60 A 127.0.0.12
www.example.org 60 A 192.0.2.2
example.net 60 SOA ns.example.net hostmaster.example.net 1 3600 600 86400 60
example.net 60 NS ns.example.net
ns.example.net 60 A 127.0.0.13
mail.example.net 60 A 192.0.2.3
'''
MX = 'mx.example.org 60 A 192.0.2.1\n'

# Run before the program. In a run
#   ports   are where to reach DNS servers {address: port of 127.0.0.1 or ::1, or minus the errno
#           that comes of it}; there is no way to port 53 of other addresses,
#   pace    is by what it waits in between (1: as it is),
#   silent  are ports from which nothing will come, so that it need not wait. From all others it
#           waits longer than it would, for this machine may have much else to do,
#   took    is by how many seconds a question to a port puts its clock on,
#   hosts   are the addresses of hosts that a service has {host: [address]}.
SURROUNDINGS = r'''
import errno, os, socket, time
now, sleep = time.time, time.sleep
connect, settimeout = socket.socket.connect, socket.socket.settimeout

def surround(ports, pace, silent, took, hosts):
    passed, resolve = [0], socket.getaddrinfo
    def reach(sock, address):
        if address[1] == 53:
            port = ports.get(address[0], -errno.ENETUNREACH)
            if port < 0:
                raise OSError(-port, os.strerror(-port))
            here = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            address = here, port
        connect(sock, address)
        passed[0] += took.get(address[1], 0)
    time.time = lambda: now() + passed[0]
    time.sleep = lambda seconds: sleep(seconds * pace)
    def limit(sock, seconds):
        try:
            silence = sock.getpeername()[1] in silent
        except OSError:
            silence = False
        settimeout(sock, 0.05 if silence else seconds * 20 if seconds and seconds < 10 else seconds)
    def addresses(host, *args, **options):
        return [found for one in hosts.get(host, [host])
                for found in resolve(one, *args, **options)]
    socket.socket.connect = reach
    socket.socket.settimeout = limit
    socket.getaddrinfo = addresses
surround(%r, %r, %r, %r, %r)
'''


class World:
    """What all these tests share: a CA, and a line that was made once: as it is after init
    ('settled'), with a key staged and published, which no look at DNS has found yet ('unseen'), and
    after such a look ('staged'). All that was at about the time `now`.

    old, new: digests of the live and the staged key
    """
    ca = folder = None

    @classmethod
    def start(cls):
        try:
            cls.make()
        except BaseException:
            cls.stop()
            raise

    @classmethod
    def make(cls):
        cls.folder = tempfile.mkdtemp(prefix='dane-')
        cls.ca = FakeCA(reuse_authz=True).start()
        zone = ['']
        with FakeDNS(lambda: BASE + MX + zone[0], aa=True) as dns, AnyLine(
                cls.ca, tlsa=NAME, staging_hours=1, dns_resolver=dns.address,
                dns_servers=dns.address) as line:
            for hook in CERTCHANGE, KEYCHANGE:
                line.hook(hook)
            line.run('init', hooks=True, check=0)
            cls.old = spki(line.key())
            zone[0] = tlsa_line(cls.old)
            line.run('cron', hooks=True, check=0)
            cls.keep(line, 'settled')
            # Published by hand, after this run
            line.run('renew', '--new-key', hooks=True, check=0)
            cls.keep(line, 'unseen')
            cls.new = spki(line.key('staging'))
            zone[0] += tlsa_line(cls.new)
            line.run('cron', hooks=True, check=0)
            cls.now = time.time()
            cls.keep(line, 'staged')

    @classmethod
    def keep(cls, line, name):
        for part in 'certs', 'keys', 'backups':
            shutil.copytree(line.path(part), os.path.join(cls.folder, name, part))
        shutil.copy2(line.path('account.key'), os.path.join(cls.folder, name, 'account.key'))

    @classmethod
    def stop(cls):
        if cls.ca:
            cls.ca.stop()
        shutil.rmtree(cls.folder)


def tlsa_line(digest, ttl=60, name=NAME):
    return '%s 60 TLSA 3 1 1 %s\n'.replace('60', str(ttl)) % (name, digest)


class Line(AnyLine):
    """A line that begins as World made it, at that time, with the zone file 'zone'. post-keychange
    publishes both keys, or the last one, or does nothing while there is a file 'lie'.

    new: digest of the staged key, or of the one that was staged
    """

    def __init__(self, start, **options):
        super().__init__(World.ca, web=False, **options)
        self.start_as, self.new = start, None

    def __enter__(self):
        super().__enter__()
        self.ahead = World.now - time.time()
        source = os.path.join(World.folder, self.start_as)
        for part in os.listdir(source):
            copy = shutil.copytree if os.path.isdir(os.path.join(source, part)) else shutil.copy2
            copy(os.path.join(source, part), self.path(part))
        if self.start_as == 'settled':
            self.write('zone', tlsa_line(World.old))
            self.publish_by('tlsa', '--ttl', '60')
        else:
            self.zones_for(World.new)
            self.write('zone', self.read('zone.both'))
            self.hook(KEYCHANGE, '[ -e {0}/lie ] || if [ "$STAGING_KEY" ]; then '
                      'cp {0}/zone.both {0}/zone; else cp {0}/zone.last {0}/zone; fi'.format(
                          self.folder.name))
        self.hook(CERTCHANGE)
        return self

    def zones_for(self, new):
        """Write zones with both keys, and with the last one alone."""
        self.new = new
        self.write('zone.both', tlsa_line(World.old) + tlsa_line(new))
        self.write('zone.last', tlsa_line(new))

    def publish_by(self, *command):
        """Let post-keychange write what the program itself tells."""
        words = ' '.join(PROGRAM + ['-c', '"$CONFIG"'] + list(command))
        self.hook(KEYCHANGE, '[ -e {0}/lie ] || {{ {1} > {0}/zone.tmp && '
                  'mv {0}/zone.tmp {0}/zone; }}'.format(self.folder.name, words))

    def write(self, name, text=''):
        write(self.path(name), text)

    def read(self, name):
        return read(self.path(name)).decode()

    def zone(self):
        """The TLSA records that were published: lines of a zone file."""
        text = self.read('zone')
        if text.startswith('['):
            return ''.join(tlsa_line(record['data'], record['ttl'], record['name'])
                           for record in json.loads(text))
        return text

    def digests(self):
        """What is published of the name, as a set."""
        return {words[3] for owner, kind, _, words in read_zone(self.zone()) if owner == NAME}

    def run(self, *args, after=0, ports=None, pace=1, silent=(), took=None, hosts=None,
            **options):
        """As AnyLine.run(), by default now; the rest as in SURROUNDINGS."""
        done = super().run(*args, after=after, code=SURROUNDINGS % (
            ports or {}, pace, silent, took or {}, hosts or {}), **options)
        done.all = done.stdout + done.stderr
        if 'Traceback' in done.all:
            raise AssertionError(done.all)
        return done

    def cron(self, after=0, **options):
        """cron -k, so many seconds from now."""
        return self.run('cron', hooks=True, after=after, **options)

    def stage(self, **options):
        """Let a new key be staged; the CompletedProcess."""
        done = self.run('renew', '--new-key', hooks=True, **options)
        self.zones_for(spki(self.key('staging')))
        return done

    def swapped(self):
        """Is the staged key the live one now, with its certificate?"""
        live = spki(self.key())
        if live not in (World.old, self.new) or live != spki(self.crt()):
            raise AssertionError('a strange live pair')
        return live == self.new

    def seen(self, after=0, **options):
        """Since when (seconds since 1970, a whole minute) DNS is seen to hold the staged key, as
        the program knows it so many seconds from now; None if it is not."""
        return self.since('seen in DNS', after=after, **options)


class Case(unittest.TestCase):
    """resolver: the validating one, own: the zone's server; both show the line's zone file."""
    maxDiff = None

    def setUp(self):
        self.made = None
        self.host = MX      # the records of the host, which may be an alias
        self.resolver, self.own = self.dns(self.zone, ad=True), self.dns(self.zone, False, True)

    def tearDown(self):
        World.ca.clock_offset = 0
        World.ca.faults.clear()

    def dns(self, *args, **options):
        return self.enter(FakeDNS(*args, **options))

    def enter(self, context):
        """Python 3.11 has this method ready-made."""
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def zone(self):
        return BASE + self.host + (self.made.zone() if self.made else '')

    def line(self, start='staged', **options):
        known = dict(tlsa=NAME, dns_resolver=self.resolver.address, dns_servers=self.own.address,
                     staging_hours=1)
        self.made = self.enter(Line(start, **known))
        if start != 'unseen':
            self.first_look()
        self.made.set(**options)
        return self.made

    def first_look(self):
        """Let it see by these servers what was seen by World's, whatever they have later."""
        later = [(dns, dns.records, dns.ad, dns.faults) for dns in (self.resolver, self.own)]
        for dns, *_ in later:
            dns.records, dns.ad, dns.faults = BASE + MX + self.made.zone(), dns == self.resolver, []
        self.made.cron(check=0)
        self.made.forget_calls()
        for dns, dns.records, dns.ad, dns.faults in later:
            dns.queries.clear()

    def assert_waits(self, line, *words, after=LATE, server=None, **options):
        """A run that goes not on, though it is late enough, forgets that DNS was right, and says
        why; its CompletedProcess."""
        done = line.cron(after, **options)
        self.assertFalse(line.swapped(), done.all)
        self.assertIsNone(line.seen(after), done.all)
        self.assertTrue(os.path.exists(line.key('staging')))
        for word in words:
            self.assertRegex(done.all, word)
        if server:
            self.assertIn(server.address, done.all)
        return done

    def assert_seen_at(self, line, after, told_at=None, **options):
        """DNS is seen to hold the staged key since so many seconds from now, by a minute; told_at:
        when that is told, if not then."""
        seen = line.seen(after if told_at is None else told_at, **options)
        self.assertIsNotNone(seen)
        self.assertLess(abs(seen + 30 - line.time(after)), 90)

    def assert_goes_on(self, line, after=2 * HOUR, **options):
        """A run that makes the staged key live."""
        done = line.cron(after, **options)
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual(done.stderr, '')
        self.assertEqual(done.returncode, 0)
        self.assertFalse(os.path.exists(line.key('staging')))
        return done


class Service:
    """A server with the pair `service.crt` and `service.key` of a folder: TLS at once, or after
    STARTTLS ('smtp', 'xmpp').

    others: further pairs (folders) that it offers, of other kinds of keys; names: {name that a
    client asks for: folder}; slow: seconds before its greeting; certificate: does it demand that of
    the client, and hangs up without; greeted: what clients said before TLS
    """

    def __init__(self, folder, way='tls', address='127.0.0.1', port=0, others=(), names=None,
                 slow=0, certificate=False):
        self.folder, self.way, self.address, self.port = folder, way, address, port
        self.others, self.names = others, names or {}
        self.slow, self.certificate = slow, certificate
        self.greeted = []

    def __enter__(self):
        self.sock = socket.create_server((self.address, self.port))
        self.port = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self.loop, args=(self.sock,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        if self.sock:
            self.sock.shutdown(socket.SHUT_RDWR)
            self.thread.join()
            self.sock.close()
        self.sock = None

    def loop(self, listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(PATIENCE)
                with contextlib.suppress(OSError, ValueError), connection:
                    self.serve(connection)

    def context(self, *folders):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for folder in folders:
            context.load_cert_chain(*(os.path.join(folder, 'service.' + ext)
                                      for ext in ('crt', 'key')))
        return context

    def by_name(self, sock, name, _):
        if name in self.names:
            sock.context = self.context(self.names[name])

    def serve(self, connection):
        time.sleep(self.slow)
        if self.way == 'xmpp':      # between servers, RFC 6120 section 5
            self.greeted.append(connection.recv(4096))
            connection.sendall(b"<stream:stream xmlns='jabber:server' version='1.0'>"
                               b"<stream:features>"
                               b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
                               b"</stream:features>")
            connection.recv(4096)
            connection.sendall(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
        if self.way == 'smtp':
            connection.sendall(b'220 mx.example.org ESMTP\r\n')
            with connection.makefile('rb') as stream:
                for line in stream:
                    word = line.strip().upper()
                    self.greeted.append(word)
                    if word == b'STARTTLS':
                        connection.sendall(b'220 go ahead\r\n')
                        break
                    connection.sendall(b'250-mx.example.org\r\n250 STARTTLS\r\n')
                else:
                    return
        context = self.context(self.folder, *self.others)
        context.sni_callback = self.by_name
        if self.certificate:
            context.verify_mode = ssl.CERT_REQUIRED
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1000)
