"""DANE through the command line: rollovers against servers that lie, lag and fail, what `served`
keeps safe, and what `tlsa` tells."""
import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import tempfile
import threading
import time
import unittest

from tests import support
from tests.fake_ca import FakeCA
from tests.fake_dns import AD, CD, RD, FakeDNS, has_ipv6, read_zone
from tests.support import PROGRAM, pair_matches, spki

HOUR, DAY = 3600, 86400
CERTCHANGE, KEYCHANGE = 'post-certchange', 'post-keychange'
NAME, OTHER, HOST = '_25._tcp.mx.example.org', '_443._tcp.www.example.org', 'mx.example.org'
NOTHING = hashlib.sha256(b'').hexdigest()

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
#   ahead   is what its clock is ahead (seconds),
#   ports   are where to reach DNS servers {address: port of 127.0.0.1 or ::1, or minus the errno
#           that comes of it}; there is no way to port 53 of other addresses,
#   pace    is by what it waits in between (1: as it is),
#   silent  are ports from which nothing will come, so that it need not wait. From all others it
#           waits longer than it would, for this machine may have much else to do.
SURROUNDINGS = r'''
import errno, os, socket, time
now, sleep = time.time, time.sleep
connect, settimeout = socket.socket.connect, socket.socket.settimeout

def surround(ahead, ports, pace, silent):
    def reach(sock, address):
        if address[1] == 53:
            port = ports.get(address[0], -errno.ENETUNREACH)
            if port < 0:
                raise OSError(-port, os.strerror(-port))
            here = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            address = here, port
        connect(sock, address)
        if address[1] in silent:
            settimeout(sock, 0.05)
    time.time = lambda: now() + ahead
    time.sleep = lambda seconds: sleep(seconds * pace)
    socket.socket.connect = reach
    socket.socket.settimeout = lambda sock, seconds: settimeout(
        sock, seconds * 20 if seconds and seconds < 10 else seconds)
surround(%r, %r, %r, %r)
'''


class World:
    """What all these tests share: a CA, and a line that was made once: as it is after init
    ('settled'), and with a key staged and seen in DNS ('staged')."""
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
        with FakeDNS(lambda: BASE + MX + zone[0], aa=True) as dns, support.QuickLine(
                cls.ca, tlsa=NAME, staging_hours=1, dns_resolver=dns.address,
                dns_servers=dns.address) as line:
            for hook in CERTCHANGE, KEYCHANGE:
                light_hook(line, hook)
            line.run('init', hooks=True, check=0)
            cls.keep(line, 'settled')
            cls.old = spki(line.key())
            zone[0] = tlsa_line(cls.old)
            # Published by hand, between two runs
            line.run('renew', '--new-key', hooks=True, check=0)
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


setUpModule, tearDownModule = World.start, World.stop


def tlsa_line(digest, ttl=60, name=NAME):
    return '%s 60 TLSA 3 1 1 %s\n'.replace('60', str(ttl)) % (name, digest)


def light_hook(line, name, body=''):
    """As Line.hook(), but it notes nothing but its name."""
    with open(line.path(name), 'w') as file:
        file.write('#!/bin/sh\necho "$HOOK" >> \'%s\'\n%s\n' % (line.path('hooks.log'), body))
    os.chmod(line.path(name), 0o755)
    line.set(**{name.replace('-', '_'): line.path(name)})


class Line(support.QuickLine):
    """A line that begins as World made it, with the zone file 'zone'. post-keychange publishes
    both keys, or the last one, or does nothing while there is a file 'lie'."""

    def __init__(self, start, **options):
        super().__init__(World.ca, web=False, **options)
        self.start_as = start

    def __enter__(self):
        super().__enter__()
        source = os.path.join(World.folder, self.start_as)
        for part in os.listdir(source):
            copy = shutil.copytree if os.path.isdir(os.path.join(source, part)) else shutil.copy2
            copy(os.path.join(source, part), self.path(part))
        if self.start_as == 'staged':       # as if it were done just now
            ago = time.time() - World.now
            self.edit_state(lambda state: state.update({
                name: state[name] + ago for name in ('published', 'seen', 'told') if name in state
            }))
            self.write('zone.both', tlsa_line(World.old) + tlsa_line(World.new))
            self.write('zone.last', tlsa_line(World.new))
            self.write('zone', self.read('zone.both'))
            light_hook(self, KEYCHANGE, '[ -e {0}/lie ] || if [ "$STAGING_KEY" ]; then '
                       'cp {0}/zone.both {0}/zone; else cp {0}/zone.last {0}/zone; fi'.format(
                           self.folder.name))
        else:
            self.write('zone', tlsa_line(World.old))
            self.publish_by('tlsa', '--ttl', '60')
        light_hook(self, CERTCHANGE)
        return self

    def publish_by(self, *command):
        """Let post-keychange write what the program itself tells."""
        words = ' '.join(PROGRAM + ['-c', '"$CONFIG"'] + list(command))
        light_hook(self, KEYCHANGE, '[ -e {0}/lie ] || {{ {1} > {0}/zone.tmp && '
                   'mv {0}/zone.tmp {0}/zone; }}'.format(self.folder.name, words))

    def write(self, name, text=''):
        with open(self.path(name), 'w') as file:
            file.write(text)

    def read(self, name):
        with open(self.path(name)) as file:
            return file.read()

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

    def run(self, *args, after=0, skew=0, ports=None, pace=1, silent=(), **options):
        """As support.QuickLine.run(); after: by how many seconds both this clock and that of the
        CA are ahead of now; skew: by how many the CA's is more so; the rest as in SURROUNDINGS."""
        World.ca.clock_offset = after + skew
        done = super().run(*args, code=SURROUNDINGS % (after, ports or {}, pace, silent), **options)
        done.all = done.stdout + done.stderr
        if 'Traceback' in done.all:
            raise AssertionError(done.all)
        return done

    def cron(self, after=0, **options):
        """cron -k, so many seconds from now."""
        return self.run('cron', hooks=True, after=after, **options)

    def swapped(self):
        """Is the key that World staged the live one, with its certificate?"""
        live = spki(self.key())
        if live not in (World.old, World.new) or live != spki(self.crt()):
            raise AssertionError('a strange live pair')
        return live == World.new

    def seen(self):
        return self.state().get('seen')

    def forget(self, *names):
        """Remove entries of the state."""
        self.edit_state(lambda state: {name: state[name] for name in state if name not in names})


class Case(unittest.TestCase):
    """resolver: the validating one, own: the zone's server; both show the line's zone file."""
    maxDiff = None

    def setUp(self):
        self.made = None
        self.host = MX      # the records of the host, which may be an alias
        self.resolver, self.own = self.dns(self.zone, ad=True), self.dns(self.zone, False, True)

    def tearDown(self):
        World.ca.clock_offset = 0

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
        self.made = self.enter(Line(start, **dict(known, **options)))
        return self.made

    def assert_waits(self, line, *words, after=2 * HOUR, server=None, **options):
        """A run that goes not on, though it is late enough, forgets that DNS was right, and says
        why (as if that were not told today); its CompletedProcess."""
        line.forget('told')
        done = line.cron(after, **options)
        self.assertFalse(line.swapped(), done.all)
        self.assertIsNone(line.seen(), done.all)
        self.assertTrue(os.path.exists(line.key('staging')))
        for word in words:
            self.assertRegex(done.all, word)
        if server:
            self.assertIn(server.address, done.all)
        return done

    def assert_goes_on(self, line, after=2 * HOUR, **options):
        """A run that makes the staged key live."""
        done = line.cron(after, **options)
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual(done.stderr, '')
        self.assertEqual(done.returncode, 0)
        self.assertFalse(os.path.exists(line.key('staging')))
        return done


# ---- rollovers that work ------------------------------------------------------------------------

class Rollover(Case):
    def roll(self, line, start):
        """A whole rollover of a settled line; start: what makes its first run stage a key."""
        first = spki(line.key())
        done = start(line)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stderr, '')
        for word in 'Making a new private key', 'Obtaining', 'post-keychange', 'goes live':
            self.assertIn(word, done.stdout)
        second = spki(line.key('staging'))
        self.assertEqual(line.digests(), {first, second})
        self.assertEqual((line.log(), spki(line.key())), ([KEYCHANGE], first))

        done = line.cron(3500)
        self.assertEqual((done.returncode, done.all), (0, ''))
        self.assertEqual((line.log(), spki(line.key())), ([KEYCHANGE], first))

        done = line.cron(3700 + 60)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertEqual(spki(line.key()), second)
        self.assertTrue(pair_matches(line.key(), line.crt()))
        self.assertEqual(line.log(), [KEYCHANGE, CERTCHANGE, KEYCHANGE])
        self.assertEqual(line.digests(), {second})
        kept = [line.path('backups', name) for name in os.listdir(line.path('backups'))]
        self.assertIn(first, [spki(file) for file in kept if '.key.' in file])

        asked = len(World.ca.requests), self.own.count(), self.resolver.count()
        done = line.cron(4000)
        self.assertEqual((done.returncode, done.all), (0, ''))
        self.assertEqual(asked, (len(World.ca.requests), self.own.count(), self.resolver.count()))

    def test_an_old_key(self):
        line = self.line('settled')
        line.age('live', 400)
        self.roll(line, Line.cron)

    def test_from_ec_to_rsa_by_json(self):
        line = self.line('settled', key_type='rsa', key_length=2048)
        line.publish_by('tlsa', '--json', '--ttl', '60')
        self.roll(line, Line.cron)
        self.assertIn(b'rsaEncryption', support.openssl(
            'x509', '-in', line.crt(), '-noout', '-text'))

    def test_on_demand(self):
        self.roll(self.line('settled'), lambda line: line.run('renew', '--new-key', hooks=True))

    def test_servers_that_answer_by_tcp_only(self):
        line = self.line()
        for dns in self.own, self.resolver:
            dns.fault('truncated')
        self.assert_goes_on(line)
        self.assertTrue(self.own.count(way='tcp') and self.resolver.count(way='tcp'))

    def test_ipv6(self):
        if not has_ipv6():      # then it is refused, not forgotten
            self.assert_waits(self.line(dns_resolver='::1@%d' % self.resolver.port))
            return
        self.assert_goes_on(self.line(dns_resolver=self.resolver.address6,
                                      dns_servers=self.own.address6))

    def test_a_server_of_our_own_that_answers_aa(self):
        """A machine with its own zones: named in the config, its AA is as good as AD."""
        self.assert_goes_on(self.line(dns_resolver=self.own.address))

    def test_without_a_hook(self):
        """The zone is changed by hand, whenever."""
        line = self.line()
        line.set(post_keychange=None)
        line.forget('published', 'keychange', 'seen')
        line.write('zone', tlsa_line(World.old))
        self.assert_waits(line)
        line.write('zone', line.read('zone.both'))
        line.cron(3 * HOUR, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3 * HOUR + 3700)

    def test_two_names(self):
        line = self.line(tlsa=[NAME, OTHER])
        done = self.assert_waits(line, OTHER)
        self.assertNotIn(NAME + ':', done.all)
        other = tlsa_line(World.old, name=OTHER) + tlsa_line(World.new, name=OTHER)
        line.write('zone', line.read('zone.both') + other)
        line.write('lie')
        line.cron(2 * HOUR, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3 * HOUR + 100)

    def test_more_than_one_combination(self):
        """A record of 3 1 2 for one key only: clients that know nothing else refuse the other."""
        line = self.line()
        wide = '%s 60 TLSA 3 1 2 %s\n'
        digest = hashlib.sha512(base64.b64decode(''.join(support.openssl(
            'pkey', '-in', line.key(), '-pubout').decode().split('\n')[1:-2]))).hexdigest()
        line.write('zone.both', line.read('zone.both') + wide % (NAME, digest))
        line.write('zone', line.read('zone.both'))
        self.assert_waits(line, '3 1 2', 'staging')


# ---- how long it waits --------------------------------------------------------------------------

class Waiting(Case):
    def test_twice_the_ttl(self):
        """The TTL of the zone's own servers: that of a resolver is what remains of it."""
        self.own.ttl, self.resolver.ttl = 1000, 3
        line = self.line(staging_hours=.001)
        line.cron(1900, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 2010)

    def test_staging_hours_if_they_are_longer(self):
        self.own.ttl = self.resolver.ttl = 1
        line = self.line()
        line.cron(3500, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3610)

    def test_a_ttl_that_grew_meanwhile(self):
        line = self.line(staging_hours=.001)
        self.own.ttl = 5000
        line.cron(1000, check=0)
        self.own.ttl = 1
        line.cron(9900, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 10010)

    def old_records(self, *faults, **options):
        """Records that lived 1000 s are replaced by some that live 1 s: caches still hold them.
        faults: (server, fault, name) while the key is staged."""
        line = self.line('settled', **dict({'staging_hours': .001}, **options))
        line.publish_by('tlsa', '--ttl', '1')
        line.write('zone', tlsa_line(World.old, 1000) + tlsa_line(World.old, 1, OTHER))
        for server, what, name in faults:
            server.fault(what, name)
        line.run('renew', '--new-key', hooks=True)
        for server in self.resolver, self.own:
            server.clear()
        line.cron(30)
        self.assertTrue(line.seen())
        self.assertEqual(len(line.digests()), 2)
        line.cron(1900, check=0)
        self.assertEqual(spki(line.key()), World.old)
        line.cron(2200, check=0)
        self.assertNotEqual(spki(line.key()), World.old)

    def test_old_records_that_lived_longer(self):
        self.old_records()

    def test_old_records_that_lived_longer_while_the_resolver_was_down(self):
        self.old_records((self.resolver, 'servfail', None))

    def test_old_records_that_lived_longer_while_a_server_was_down(self):
        """What the resolver then knows of their TTL is a remainder."""
        self.resolver.ttl = 3
        self.old_records((self.own, 'servfail', None))

    def test_old_records_that_lived_longer_of_one_name_of_two(self):
        self.old_records((self.resolver, 'servfail', NAME), (self.own, 'servfail', NAME),
                         tlsa=[NAME, OTHER])

    def test_the_clock_starts_after_the_last_answer(self):
        line = self.line()
        line.forget('seen')
        self.own.fault('slow', kind='TLSA', seconds=.2)
        line.cron(check=0)
        self.assertTrue(self.own.count(NAME, 'TLSA'))
        self.assertGreaterEqual(line.seen(), self.own.queries[-1].sent)

    def test_staging_hours_that_are_too_short_are_told(self):
        line = self.line('settled')
        line.publish_by('tlsa', '--ttl', '7200')
        line.write('zone', tlsa_line(World.old, 7200))
        done = line.run('renew', '--new-key', hooks=True, check=0)
        self.assertRegex(done.stdout, 'staging-hours.* 4 hours|14400')
        self.assertNotIn('staging-hours', line.cron(60, check=0).all)
        line.cron(2 * HOUR, check=0)
        self.assertEqual(spki(line.key()), World.old)

    def test_at_init_too(self):
        """It runs again after an edit of the config, say; and needs no DNS."""
        line = self.line('settled')
        self.assertEqual(line.run('init', hooks=True, check=0).all, '')
        self.own.ttl = self.resolver.ttl = 7200
        self.assertIn('staging-hours', line.run('init', hooks=True, check=0).stdout)
        self.resolver.stop()
        line.run('init', hooks=True, check=0)
        self.resolver.start()

    def test_a_time_in_the_future(self):
        """It counts as none: the clock starts anew, and the line is not stuck for ever."""
        line = self.line()
        line.edit_state(lambda state: state.update(seen=time.time() + 40 * DAY))
        line.cron(2 * HOUR, check=0)
        self.assertFalse(line.swapped())
        self.assertLess(abs(line.seen() - time.time() - 2 * HOUR), 60)
        self.assert_goes_on(line, 3 * HOUR + 100)

        line = self.line()
        line.edit_state(lambda state: state.update(published=time.time() + 40 * DAY))
        line.cron(2 * HOUR, check=0)
        self.assertEqual(line.log()[0], KEYCHANGE)
        line.cron(3 * HOUR + 100, check=0)
        self.assertTrue(line.swapped())

    def put_there(self, line):
        """Put a new key in the place of the staged one, as people may; its digest."""
        support.openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256',
                        '-out', line.key('staging'))
        return spki(line.key('staging'))

    def test_a_key_that_is_put_there_by_hand(self):
        """What was seen of the key before, and how long its records lived, is not about it."""
        line = self.line(staging_hours=.001)
        line.set(post_keychange=None)
        self.own.ttl = 7200
        line.cron(60, check=0)
        self.assert_goes_on(line, 5 * HOUR)
        self.assertEqual({'seen', 'ttl', 'published'} & set(line.state()), set())
        self.own.ttl = 900
        third = self.put_there(line)
        line.write('zone', tlsa_line(World.new) + tlsa_line(third))
        for after in 200 * HOUR, 200 * HOUR + 1700:
            line.cron(after, check=0)
            self.assertEqual(spki(line.key()), World.new)
        line.cron(200 * HOUR + 1810, check=0)
        self.assertEqual(spki(line.key()), third)

    def test_another_key_in_the_place_of_the_staged_one(self):
        """By hand, after DNS was seen to hold the first."""
        line = self.line()
        line.set(post_keychange=None)
        third = self.put_there(line)
        line.write('zone', tlsa_line(World.old) + tlsa_line(third))
        for after in 2 * HOUR, 3 * HOUR - 100:
            line.cron(after, check=0)
            self.assertEqual(spki(line.key()), World.old)
        line.cron(3 * HOUR + 100, check=0)
        self.assertEqual(spki(line.key()), third)

    def test_a_ttl_of_the_key_before(self):
        """init tells what is there now."""
        self.own.ttl = 7200
        line = self.line()
        line.cron(60, check=0)
        self.assert_goes_on(line, 5 * HOUR)
        self.own.ttl = 60
        self.assertEqual(line.run('init', hooks=True, check=0, after=6 * HOUR).all, '')

    def test_the_ttl_of_an_alias(self):
        """A hook may let it point elsewhere, and caches hold where it pointed."""
        line = self.line(staging_hours=.001)
        line.forget('seen')
        line.write('zone', '%s 5000 CNAME tlsa.example.net\n' % NAME + ''.join(
            tlsa_line(digest, name='tlsa.example.net') for digest in (World.old, World.new)))
        line.cron(check=0)
        self.assertTrue(line.seen())
        line.cron(9900, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 10100)

    def test_a_lost_state(self):
        for text in None, '{', '[]', '{"seen": "long ago", "published": 1, "keychange": 7}':
            with self.subTest(text):
                line = self.line()
                os.unlink(line.path('certs', 'live.state'))
                if text:
                    line.write('certs/live.state', text)
                line.cron(2 * HOUR, check=0)
                self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
                self.assertFalse(line.swapped())
                self.assert_goes_on(line, 3 * HOUR + 100)

    def test_a_wrong_clock(self):
        """No look by such a clock is trusted."""
        for ahead in 2 * HOUR, -2 * HOUR:
            with self.subTest(ahead=ahead):
                line = self.line()
                line.cron(3 * HOUR, skew=ahead)
                self.assertFalse(line.swapped())
                line.forget('seen')
                done = line.cron(4 * HOUR, skew=ahead)
                self.assertIsNone(line.seen())
                self.assertIn('clock', done.stderr)
                self.assertEqual(done.returncode, 1)
                line.cron(5 * HOUR, check=0)
                self.assertFalse(line.swapped())
                self.assert_goes_on(line, 6 * HOUR + 100)

    def test_a_clock_that_is_a_little_ahead(self):
        """It jumps 50 minutes over the time of waiting: the CA's clock counts."""
        line = self.line(staging_hours=.2)
        done = line.cron(3000, skew=-3000)
        self.assertFalse(line.swapped())
        self.assertEqual((done.returncode, done.all), (0, ''))
        line.cron(3000 + 600, skew=-3000, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3000 + 740, skew=-3000)

    def test_a_clock_that_was_a_little_behind(self):
        """When DNS was seen to be right: that is dated by the CA's clock."""
        line = self.line(staging_hours=.2)
        line.edit_state(lambda state: state.update(published=state['published'] - HOUR))
        line.forget('seen')
        line.cron(600, skew=3000, check=0)
        seen = line.seen()
        self.assertLess(abs(seen - time.time() - HOUR), 300)
        line.cron(660, skew=3000, check=0)      # although that is in the future
        self.assertEqual(line.seen(), seen)
        line.cron(HOUR + 600, check=0)
        self.assertFalse(line.swapped())
        self.assertEqual(line.seen(), seen)
        self.assert_goes_on(line, HOUR + 800)

    def test_a_clock_that_is_wrong_tells_nothing_of_1970(self):
        """What a key waits for is told if it is known."""
        line = self.line()
        line.forget('told')
        done = line.cron(3 * HOUR, skew=2 * HOUR, check=1)
        self.assertIn('clock', done.stderr)
        self.assertNotIn('1970', done.all)
        self.assertEqual(done.stdout, '')

    def test_every_new_key_is_told(self):
        """Until when it waits; also on the day on which that was told of another one."""
        line = self.line()
        line.publish_by('tlsa', '--ttl', '60')
        self.assert_goes_on(line)
        done = line.run('renew', '--new-key', hooks=True, check=0, after=3 * HOUR)
        self.assertIn("'staging' goes live, ", done.stdout)
        self.assertNotIn('goes live', line.cron(3 * HOUR + 60, check=0).all)

    def without_ca(self, line, how):
        """Let the CA be down, or say that it must not be asked."""
        url = line.options['directory_url']
        if how == 'down':
            line.set(directory_url='https://127.0.0.1:1/directory')
        else:
            line.edit_state(lambda state: state.update(retry={
                'count': 1, 'names': ['example.org'], 'directory': url, 'server': True,
                'error': 'wait', 'after': time.time() + 3 * DAY}))
        return url

    def test_dns_is_looked_at_without_the_ca(self):
        """It alone can say that our clock is right, so nothing begins by that; but what is wrong
        is seen, and the time of waiting begins anew."""
        for how in 'down', 'retry-after':
            with self.subTest(how):
                line = self.line()
                url = self.without_ca(line, how)
                seen, asked = line.seen(), len(World.ca.requests)
                for after in 600, 1200:
                    self.own.clear()
                    self.assertEqual(line.cron(after, check=0).all, '')
                    self.assertEqual((self.own.count(NAME, 'TLSA'), line.seen()), (1, seen))
                line.write('zone', tlsa_line(World.old))
                done = line.cron(1800, check=1)
                self.assertIn('what time it is', done.stderr)
                self.assertIsNone(line.seen())
                self.assertEqual(line.log(), [])
                line.write('zone', line.read('zone.both'))
                self.assertEqual(line.cron(2400, check=0).all, '')
                self.assertIsNone(line.seen())
                self.assertEqual(len(World.ca.requests), asked)
                line.set(directory_url=url)
                line.forget('retry')
                line.cron(2 * HOUR, check=0)
                self.assertFalse(line.swapped())
                self.assert_goes_on(line, 3 * HOUR + 100)

    def test_a_ca_that_is_down_delays_it(self):
        """It alone can say whether our clock has jumped over the time of waiting."""
        line = self.line()
        url = line.options['directory_url']
        line.set(directory_url='https://127.0.0.1:1/directory')
        done = line.cron(30 * HOUR)
        self.assertIn('what time it is', done.stderr)
        self.assertFalse(line.swapped())
        line.set(directory_url=url)
        self.assert_goes_on(line)


# ---- what goes wrong with DNS -------------------------------------------------------------------

class Failing(Case):
    FAULTS = (   # the server, how it fails, what is told of it
        ('resolver', 'servfail', 'SERVFAIL'), ('resolver', 'refused', 'error 5|REFUSED|refuses'),
        ('resolver', 'no-ad', r'\bAD\b'), ('resolver', 'nxdomain', 'the resolver'),
        ('resolver', 'garbage', 'not answer'), ('resolver', 'loop', 'not answer'),
        ('resolver', 'cut', 'not answer'), ('resolver', 'wrong-id', 'not answer'),
        ('resolver', 'wrong-question', 'not answer'), ('resolver', 'echo', 'not answer'),
        ('own', 'servfail', NAME), ('own', 'refused', NAME),
        ('own', 'no-aa', NAME), ('own', 'nxdomain', 'no TLSA'), ('own', 'garbage', 'not answer'),
        ('own', 'wrong-id', 'not answer'), ('own', 'echo', NAME))

    def test_answers_that_are_none(self):
        """Each starts the clock anew, runs the hook again, and is told, with the server."""
        line = self.line()
        start = line.state()
        for which, what, words in self.FAULTS:
            with self.subTest(server=which, fault=what):
                for dns in self.own, self.resolver:
                    dns.clear()
                line.edit_state(lambda state: start)
                line.write('hooks.log')
                server = getattr(self, which)
                server.fault(what)
                done = self.assert_waits(line, words, NAME)
                self.assertIn(server.address if words != 'the resolver' else '', done.all)
                self.assertNotRegex(done.all, '%s: [^;]*%s' % (NAME, NAME))     # it is told once
                self.assertEqual(line.log(), [KEYCHANGE])
                self.assertEqual(done.returncode, 1)
        self.own.clear()
        line.edit_state(lambda state: start)
        self.assert_goes_on(line)

    def test_no_answer_at_all_when_a_key_is_staged(self):
        """It is told, once a day, and goes on by itself."""
        line = self.line('settled')
        for dns in self.own, self.resolver:
            dns.fault('servfail')
        done = line.run('renew', '--new-key', hooks=True)
        self.assertIn(self.resolver.address, done.all)
        self.assertNotIn(self.resolver.address, line.cron(2 * HOUR).all)
        self.assertIn(self.resolver.address, line.cron(25 * HOUR, check=1).all)
        for dns in self.own, self.resolver:
            dns.clear()
        line.cron(26 * HOUR, check=0)
        self.assertEqual(line.digests(), {World.old, spki(line.key('staging'))})
        self.assertEqual(spki(line.key()), World.old)
        line.cron(27 * HOUR + 100, check=0)
        self.assertNotEqual(spki(line.key()), World.old)

    def test_servers_that_are_down(self):
        for which in 'resolver', 'own':
            with self.subTest(which):
                line, server = self.line(), getattr(self, which)
                server.stop()
                self.assert_waits(line, 'not answer', server=server)
                server.start()
                line.cron(2 * HOUR, check=0)
                self.assertFalse(line.swapped())
                self.assert_goes_on(line, 3 * HOUR + 100)

    def test_servers_that_are_silent(self):
        for which in 'resolver', 'own':
            with self.subTest(which):
                line, server = self.line(), getattr(self, which)
                server.fault('silent')
                self.assert_waits(line, 'not answer', server=server, silent=[server.port])
                support.wait_for(lambda server=server: len(server.queries) > 1, support.PATIENCE,
                                 'more than one try')
                server.clear()

    def test_a_server_that_lags(self):
        late = self.dns(lambda: BASE + MX + tlsa_line(World.old), False, True)
        line = self.line(dns_servers='%s %s' % (self.own.address, late.address))
        done = self.assert_waits(line, "'staging'", server=late)
        self.assertNotIn(self.own.address, done.all)
        late.records = self.zone
        line.cron(2 * HOUR, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3 * HOUR + 100)

    def test_a_resolver_that_still_has_the_old_records(self):
        self.resolver.records = lambda: BASE + MX + tlsa_line(World.old)
        line = self.line()
        self.assert_waits(line, 'resolver', "'staging'")

    def test_a_hook_that_does_nothing(self):
        line = self.line()
        line.write('zone', tlsa_line(World.old))
        line.write('lie')
        line.forget('seen', 'told')
        done = line.cron()
        self.assertIn(self.own.address, done.all)
        self.assertRegex(done.all, "no 3 1 1 record for 'staging'")
        self.assertEqual(line.log(), [KEYCHANGE])
        # It runs at each run, but that is told once a day.
        for count, after in enumerate((2 * HOUR, 12 * HOUR), 2):
            done = line.cron(after)
            self.assertEqual(line.log(), [KEYCHANGE] * count)
            self.assertNotIn(self.own.address, done.all)
        done = line.cron(25 * HOUR, check=1)
        self.assertIn(self.own.address, done.all)
        self.assertFalse(line.swapped())
        os.unlink(line.path('lie'))
        done = line.cron(26 * HOUR, check=0)
        self.assertEqual(line.log(), [KEYCHANGE] * 5)
        line.cron(27 * HOUR - 100, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 27 * HOUR + 100)
        self.assertEqual(line.log(), [KEYCHANGE] * 5 + [CERTCHANGE, KEYCHANGE])
        self.assertEqual(line.digests(), {World.new})

    def test_a_hook_that_fails(self):
        line = self.line()
        line.write('zone', tlsa_line(World.old))
        light_hook(line, KEYCHANGE, 'exit 3')
        for count in 1, 2:
            done = line.cron(count * 2 * HOUR, check=1)
            self.assertRegex(done.stderr, 'post-keychange.* exit status 3')
            self.assertEqual(line.log(), [KEYCHANGE] * count)
        self.assertFalse(line.swapped())

    def test_another_tool_puts_the_old_zone_back(self):
        """The second look, just before the key goes live."""
        line = self.line()
        line.write('zone', tlsa_line(World.old))
        done = line.cron(2 * HOUR)
        self.assertFalse(line.swapped())
        self.assertEqual(line.log(), [KEYCHANGE])
        self.assertEqual(done.returncode, 0)    # as the hook put it right
        self.assertLess(abs(line.seen() - time.time() - 2 * HOUR), 60)
        line.cron(3 * HOUR - 100, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 3 * HOUR + 100)

    def test_old_zone_at_one_server_only(self):
        """While the resolver still has the good answer."""
        self.own.records = lambda: BASE + MX + tlsa_line(World.old)
        self.assert_waits(self.line())

    def test_a_failing_run_says_why(self):
        """Also if it was told today that all is well."""
        line = self.line()
        line.write('lie')
        line.write('zone', tlsa_line(World.old))
        done = line.cron(2 * HOUR)
        self.assertFalse(line.swapped())
        if done.returncode:
            self.assertIn(self.own.address, done.all)

    def test_a_live_key_that_is_missing_in_dns(self):
        line = self.line()
        line.write('zone.both', tlsa_line(World.new))
        line.write('zone', tlsa_line(World.new))
        self.assert_waits(line, "'live'")

    def test_records_that_are_none(self):
        """Two bytes, or of a kind that nobody knows."""
        line = self.line()
        for words in '3 1', '3 1 1', '9 9 9 00':
            with self.subTest(words):
                line.write('zone.both', '%s 60 TLSA %s\n' % (NAME, words))
                line.write('zone', line.read('zone.both'))
                self.assert_waits(line)

    def test_such_a_record_beside_the_good_ones(self):
        line = self.line()
        line.write('zone', line.read('zone.both') + '%s 60 TLSA 3 1\n' % NAME)
        self.assert_goes_on(line)


# ---- aliases ------------------------------------------------------------------------------------

FAR = '_25._tcp.mail.example.net'
ALIAS = HOST + ' 60 CNAME mail.example.net\n'


class Aliases(Case):
    def check(self, goes_on, near, host=MX, fault=None, **options):
        """One line, with TLSA records `near` and the host's records `host`."""
        line = self.line(**options)
        self.host, text = host, near
        line.write('zone.both', text)
        line.write('zone', text)
        self.resolver.clear()
        if fault:
            self.resolver.fault(*fault[:2], **fault[2])
        if goes_on:
            return self.assert_goes_on(line)
        return self.assert_waits(line)

    def both(self, name):
        return tlsa_line(World.old, name=name) + tlsa_line(World.new, name=name)

    def test_of_the_tlsa_name(self):
        """One record set, in another zone, for all names."""
        alias = '%s 60 CNAME a.example.org\na.example.org 60 CNAME tlsa.example.net\n' % NAME
        self.check(True, alias + self.both('tlsa.example.net'))
        done = self.check(False, alias + tlsa_line(World.old, name='tlsa.example.net'))
        self.assertIn('tlsa.example.net', done.all)

    def test_that_leads_nowhere(self):
        self.check(False, '%s 60 CNAME tlsa.example.net\n' % NAME)
        self.check(False, '%s 60 CNAME a.example.org\na.example.org 60 CNAME %s\n' % (NAME, NAME))

    def test_of_the_host(self):
        """RFC 7671 section 7: clients look at the alias' end first."""
        self.check(True, self.both(FAR), ALIAS)
        self.check(True, self.both(FAR) + tlsa_line(World.old), ALIAS)

    def test_of_the_host_with_old_records_at_its_end(self):
        done = self.check(False, self.both(NAME) + tlsa_line(World.old, name=FAR), ALIAS)
        self.assertIn(FAR, done.all)

    def test_of_a_host_without_ipv4(self):
        self.host = 'mail6.example.net 60 AAAA 2001:db8::1\n'
        self.check(False, self.both(NAME) + tlsa_line(
            World.old, name='_25._tcp.mail6.example.net'), self.host
            + HOST + ' 60 CNAME mail6.example.net\n')

    def test_of_the_host_without_records_at_its_end(self):
        """Then they look at the name itself."""
        self.check(True, self.both(NAME), ALIAS)
        self.check(False, tlsa_line(World.old), ALIAS)

    def test_of_the_host_that_is_not_validated(self):
        """It is not followed then, by clients neither."""
        for kind in 'A', 'AAAA':
            self.resolver.fault('no-ad', kind=kind)
        line = self.line()
        self.host = ALIAS
        line.write('zone', self.both(NAME) + tlsa_line(World.old, name=FAR))
        for kind in 'A', 'AAAA':
            self.resolver.fault('no-ad', HOST, kind)
        self.assert_goes_on(line)

    def test_of_the_host_whose_end_cannot_be_looked_up(self):
        """What clients will find there is not known, so nothing counts as found."""
        text = self.both(NAME) + tlsa_line(World.old, name=FAR)
        self.check(False, text, ALIAS, ('servfail', FAR, {}))

    def test_of_the_host_that_cannot_be_looked_up(self):
        text = self.both(NAME) + tlsa_line(World.old, name=FAR)
        self.check(False, text, ALIAS, ('servfail', HOST, {}))


# ---- the zone's own servers ---------------------------------------------------------------------

class Servers(Case):
    """Without dns-servers: SOA of the zone, its NS records, their addresses."""

    def setUp(self):
        super().setUp()
        self.second = self.dns(self.zone, False, True)
        self.ports = {'127.0.0.11': self.own.port, '127.0.0.12': self.second.port}
        self.extra, self.base = '', BASE

    def zone(self):
        return self.base + self.host + self.extra + (self.made.zone() if self.made else '')

    def line(self, start='staged', **options):
        return super().line(start, **dict({'dns_servers': None}, **options))

    def test_all_are_asked(self):
        self.assert_goes_on(self.line(), ports=self.ports)
        for dns in self.own, self.second:
            self.assertEqual({(query.name.lower(), query.kind) for query in dns.queries},
                             {(NAME, 'TLSA')})

    def test_one_lags(self):
        self.second.records = lambda: self.base + MX + tlsa_line(World.old)
        done = self.assert_waits(self.line(), r'127\.0\.0\.12', ports=self.ports)
        self.assertNotIn('127.0.0.11', done.all)

    def test_one_is_down(self):
        self.second.stop()
        self.assert_waits(self.line(), r'127\.0\.0\.12', ports=self.ports)
        self.second.start()

    def test_one_does_not_know_the_zone(self):
        for what in 'refused', 'no-aa', 'servfail':
            self.second.clear()
            self.second.fault(what)
            self.assert_waits(self.line(), r'127\.0\.0\.12', ports=self.ports)

    def test_one_has_no_address(self):
        self.base = BASE.replace('ns2.example.org 60 A 127.0.0.12\n', '')
        self.assert_waits(self.line(), 'address', ports=self.ports)

    def test_one_has_several_addresses(self):
        """Each is asked, and there may be another server behind it; but from a machine without
        IPv6 nobody can ask there."""
        late = self.dns(lambda: self.base + MX + tlsa_line(World.old), False, True)
        self.extra = 'ns2.example.org 60 A 127.0.0.14\n'
        self.assert_waits(self.line(), r'127\.0\.0\.14',
                          ports=dict(self.ports, **{'127.0.0.14': late.port}))
        self.extra = 'ns2.example.org 60 AAAA 2001:db8::53\n'
        self.assert_goes_on(self.line(), ports=self.ports)

    def test_one_whose_addresses_cannot_be_looked_up(self):
        """There may be an address behind it that nobody asked."""
        for kind in 'AAAA', 'A':
            with self.subTest(kind):
                self.resolver.clear()
                self.resolver.fault('servfail', 'ns2.example.org', kind)
                self.assert_waits(self.line(), NAME + '.*SERVFAIL', ports=self.ports,
                                  server=self.resolver)

    def test_an_address_to_which_there_is_no_way(self):
        """Only if this machine can never reach it, others may be asked in its place."""
        self.extra = 'ns2.example.org 60 A 127.0.0.14\n'
        for number in errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT:
            with self.subTest(errno.errorcode[number]):
                self.assert_goes_on(self.line(), ports=dict(self.ports, **{'127.0.0.14': -number}))
        for number in errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.ENOBUFS:
            with self.subTest(errno.errorcode[number]):
                done = self.assert_waits(
                    self.line(), r'127\.0\.0\.14.*' + os.strerror(number),
                    ports=dict(self.ports, **{'127.0.0.14': -number}))
                self.assertNotIn('127.0.0.12', done.all)

    def test_a_server_to_which_there_is_no_way(self):
        """All its addresses: then it was not asked."""
        for number in errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH:
            with self.subTest(errno.errorcode[number]):
                self.assert_waits(self.line(), r'127\.0\.0\.12.*' + os.strerror(number),
                                  ports=dict(self.ports, **{'127.0.0.12': -number}))

    def test_one_has_only_ipv6(self):
        self.base = BASE.replace('A 127.0.0.12', 'AAAA 2001:db8::53')
        ports = dict(self.ports, **{'2001:db8::53': self.second.port})
        if has_ipv6():
            self.assert_goes_on(self.line(), ports=ports)
        self.second.records = lambda: self.base + MX + tlsa_line(World.old)
        done = self.assert_waits(self.line(), '2001:db8::53' if has_ipv6() else NAME, ports=ports)
        self.assertNotIn('127.0.0.11', done.all)

    def test_the_zone_of_an_alias(self):
        """The servers of the zone in which the records are."""
        line = self.line()
        text = '%s 60 CNAME tlsa.example.net\n' % NAME + ''.join(
            tlsa_line(digest, name='tlsa.example.net') for digest in (World.old, World.new))
        line.write('zone', text)
        other = self.dns(self.zone, False, True)
        self.assert_goes_on(line, ports={'127.0.0.13': other.port})
        self.assertTrue(other.count('tlsa.example.net', 'TLSA'))

    def test_a_zone_cut_below(self):
        """mx.example.org is a zone of its own."""
        self.extra = ('mx.example.org 60 SOA ns.example.net hostmaster.example.org 1 2 3 4 5\n'
                      'mx.example.org 60 NS ns.example.net\n')
        other = self.dns(self.zone, False, True)
        self.assert_goes_on(self.line(), ports={'127.0.0.13': other.port})
        self.assertTrue(other.count(NAME, 'TLSA'))

    def test_servers_that_cannot_be_found(self):
        for what, kind in (('servfail', 'NS'), ('nxdomain', 'NS'),
                           ('servfail', 'SOA'), ('no-soa', 'SOA')):
            with self.subTest(fault=what, kind=kind):
                self.resolver.clear()
                self.resolver.fault(what, kind=kind)
                done = self.assert_waits(self.line(), NAME, ports=self.ports)
                self.assertNotIn('index out of range', done.all)

    def test_they_are_found_without_validation(self):
        """Only the records themselves need it, for they are what clients go by."""
        for kind in 'SOA', 'NS':
            with self.subTest(kind):
                self.resolver.clear()
                self.resolver.fault('no-ad', kind=kind)
                self.assert_goes_on(self.line(), ports=self.ports)
        flags = {(query.kind, query.flags) for query in self.resolver.queries}
        self.assertEqual(flags, {('SOA', RD | CD), ('NS', RD | CD), ('A', RD | CD),
                                 ('AAAA', RD | CD), ('TLSA', RD | CD), ('A', RD | AD),
                                 ('TLSA', RD | AD)})

    def test_a_zone_that_is_not_valid_when_a_key_is_staged(self):
        """The hook is run, for it may be what mends it; but nothing is seen before that is so."""
        for what in 'bogus', 'no-ad':
            with self.subTest(what):
                self.resolver.clear()
                line = self.line('settled')
                self.own.ttl = 7200
                self.resolver.fault(what)
                line.run('renew', '--new-key', hooks=True, ports=self.ports)
                self.assertEqual(line.log()[:1], [KEYCHANGE])
                self.assertEqual(line.digests(), {World.old, spki(line.key('staging'))})
                self.assertEqual((line.state().get('ttl'), line.seen()), (7200, None))
                self.own.ttl = 60
                line.cron(5 * HOUR, ports=self.ports)
                self.assertIsNone(line.seen())
                self.resolver.clear()
                line.cron(6 * HOUR, ports=self.ports, check=0)
                self.assertTrue(line.seen())
                line.cron(9 * HOUR, ports=self.ports, check=0)      # 2 x TTL: 4 hours
                self.assertEqual(spki(line.key()), World.old)
                line.cron(10 * HOUR + 100, ports=self.ports, check=0)
                self.assertNotEqual(spki(line.key()), World.old)

    def test_an_alias_in_a_zone_that_is_not_valid(self):
        """The servers of the zone in which the records are, as always."""
        other = self.dns(self.zone, False, True)
        other.fault('refused', NAME)    # it has that other zone only
        line = self.line('settled')
        line.write('zone', '%s 60 CNAME tlsa.example.net\n' % NAME + tlsa_line(
            World.old, 5000, 'tlsa.example.net'))
        line.write('lie')
        self.resolver.fault('bogus')
        line.run('renew', '--new-key', hooks=True, ports={'127.0.0.13': other.port})
        self.assertEqual((line.log(), line.state().get('ttl')), ([KEYCHANGE], 5000))

    def test_a_zone_that_is_not_valid_later(self):
        for what in 'bogus', 'no-ad':
            self.resolver.clear()
            self.resolver.fault(what)
            self.assert_waits(self.line(), 'SERVFAIL' if what == 'bogus' else 'AD',
                              ports=self.ports, server=self.resolver)


# ---- the services -------------------------------------------------------------------------------

class Service:
    """A server with the pair `service.crt` and `service.key` of a folder: TLS at once, after
    STARTTLS ('smtp', 'xmpp'), or never (talk)."""

    def __init__(self, folder, way='tls'):
        self.folder, self.way, self.port = folder, way, 0
        self.greeted = []

    def __enter__(self):
        self.sock = socket.create_server(('127.0.0.1', self.port))
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
                connection.settimeout(support.PATIENCE)
                with contextlib.suppress(OSError, ValueError), connection:
                    self.serve(connection)

    def serve(self, connection):
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
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(os.path.join(self.folder, 'service.' + ext)
                                  for ext in ('crt', 'key')))
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1000)


class Served(Case):
    """The old key leaves DNS after the services have left it."""

    def line(self, way='tls', suffix='', **options):
        line = super().line(**options)
        light_hook(line, CERTCHANGE, '[ -e {0}/stuck ] || {{ cp "$LIVE_KEY" {0}/service.key; '
                   'cp "$LIVE_CRT" {0}/service.crt; }}'.format(line.folder.name))
        shutil.copy(line.key(), line.path('service.key'))
        shutil.copy(line.crt(), line.path('service.crt'))
        self.service = self.enter(Service(line.folder.name, way))
        line.set(served='127.0.0.1:%d%s' % (self.service.port, suffix))
        return line

    def assert_kept(self, line, done, *words):
        """The new key is live, the old one is still in DNS, and it says why."""
        self.assertEqual(done.returncode, 1)
        self.assertTrue(line.swapped())
        self.assertEqual(line.digests(), {World.old, World.new})
        self.assertNotIn(KEYCHANGE, line.log())
        for word in ('127.0.0.1:%d' % self.service.port,) + words:
            self.assertIn(word, done.stderr)

    def test_they_use_the_new_key(self):
        line = self.line()
        self.assert_goes_on(line)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        self.assertEqual(line.digests(), {World.new})
        self.assertEqual(spki(line.path('service.crt')), World.new)

    def test_they_still_use_the_old_key(self):
        line = self.line()
        line.write('stuck')
        self.assert_kept(line, line.cron(2 * HOUR, pace=.02), 'key')
        line.write('hooks.log')
        self.assert_kept(line, line.cron(3 * HOUR, pace=.02), 'key')
        self.assertEqual(line.log(), [CERTCHANGE])      # again, and once
        self.assertEqual(spki(line.path('service.crt')), World.old)
        os.unlink(line.path('stuck'))
        line.write('hooks.log')
        line.cron(4 * HOUR, check=0, pace=.02)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        self.assertEqual(line.digests(), {World.new})
        self.assertEqual(line.cron(5 * HOUR, check=0).all, '')

    def test_they_are_down(self):
        line = self.line()
        self.service.__exit__()
        self.assert_kept(line, line.cron(2 * HOUR, pace=.02), 'reach')
        self.service.__enter__()
        line.cron(3 * HOUR, check=0, pace=.02)
        self.assertEqual(line.digests(), {World.new})
        self.assertIn(KEYCHANGE, line.log())

    def test_they_speak_no_tls(self):
        line = self.line('smtp')        # plain TLS is what is asked for
        self.assert_kept(line, line.cron(2 * HOUR, pace=.02))

    def test_starttls(self):
        line = self.line('smtp', '/smtp')
        line.write('stuck')
        self.assert_kept(line, line.cron(2 * HOUR, pace=.02))
        os.unlink(line.path('stuck'))
        line.cron(3 * HOUR, check=0, pace=.02)
        self.assertEqual(line.digests(), {World.new})
        self.assertIn(b'STARTTLS', self.service.greeted)

    def test_starttls_between_servers_of_xmpp(self):
        """A protocol with a hyphen in its name."""
        line = self.line('xmpp', '/xmpp-server')
        self.assert_goes_on(line)
        self.assertEqual(line.digests(), {World.new})
        self.assertIn(b"xmlns='jabber:server'", self.service.greeted[-1])

    def test_one_of_two_is_late(self):
        line = self.line()
        os.mkdir(line.path('other'))
        for ext in 'key', 'crt':
            shutil.copy(line.path('service.' + ext), line.path('other'))
        other = self.enter(Service(line.path('other')))
        line.set(served=[line.options['served'], 'localhost:%d' % other.port])
        done = line.cron(2 * HOUR, check=1, pace=.02)
        self.assertEqual(line.digests(), {World.old, World.new})
        self.assertIn('localhost:%d' % other.port, done.stderr)
        self.assertNotIn('127.0.0.1:%d' % self.service.port, done.stderr)

    def test_what_is_done_by_hand(self):
        """Whoever restarts the service himself needs no hook."""
        line = self.line()
        line.write('stuck')
        line.cron(2 * HOUR, check=1, pace=.02)
        for ext in 'key', 'crt':
            shutil.copy(getattr(line, ext)(), line.path('service.' + ext))
        line.write('hooks.log')
        line.cron(3 * HOUR, check=0, pace=.02)
        self.assertEqual((line.log(), line.digests()), ([KEYCHANGE], {World.new}))

    def test_a_lost_state(self):
        """What was done is forgotten, but not that the services come first."""
        line = self.line()
        line.write('stuck')
        line.cron(2 * HOUR, check=1, pace=.02)
        os.unlink(line.path('certs', 'live.state'))
        self.assert_kept(line, line.cron(3 * HOUR, pace=.02))

    def test_without_hooks_nobody_is_asked(self):
        line = self.line()
        self.service.__exit__()
        line.run('cron', after=2 * HOUR, check=0)
        self.assertTrue(line.swapped())
        self.assertEqual(line.digests(), {World.old, World.new})


# ---- emergencies --------------------------------------------------------------------------------

class Emergency(Case):
    def now(self, line, check=0, **options):
        return line.run('renew', '--new-key', '--now', hooks=True, check=check, **options)

    def test_the_key_that_is_published(self):
        line = self.line()
        issued = len(World.ca.issued)
        done = self.now(line)
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual(len(World.ca.issued), issued)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        self.assertEqual(line.digests(), {World.new})
        self.assertFalse(os.path.exists(line.key('staging')))
        self.assertEqual(line.cron(60, check=0).all, '')

    def test_what_it_costs(self):
        """Nothing, once the key would go live anyway."""
        for standby, after, costs in ('no', 60, True), ('yes', 59 * 60, True), ('yes', DAY, False):
            with self.subTest(standby=standby, after=after):
                line = self.line(standby=standby)
                done = self.now(line, after=after)
                self.assertTrue(line.swapped())
                self.assertEqual('caches' in done.stdout, costs, done.stdout)

    def test_certificates_that_cannot_be_renewed(self):
        """They are due, but the CA is down: the staged one is still good."""
        line = self.line(standby='yes', renew_cert_before_expiry_days=30)
        line.set(directory_url='https://127.0.0.1:1/directory')
        done = self.now(line, check=1, after=61 * DAY)
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])
        self.assertIn('no certificate', done.stderr)

    def test_what_it_costs_without_a_look_at_dns(self):
        line = self.line('settled', tlsa=None)
        light_hook(line, KEYCHANGE)
        self.assertIn('caches', self.now(line).stdout)

    def test_a_certificate_that_has_expired(self):
        """It is no help."""
        line = self.line(standby='yes')
        line.set(directory_url='https://127.0.0.1:1/directory')
        self.now(line, check=1, after=95 * DAY)
        self.assertFalse(line.swapped())

    def test_no_key_is_staged(self):
        """It says what that costs."""
        line = self.line('settled')
        done = self.now(line)
        live = spki(line.key())
        self.assertNotEqual(live, World.old)
        self.assertTrue(pair_matches(line.key(), line.crt()))
        self.assertRegex(done.stdout, 'cache')
        self.assertEqual(line.digests(), {live})
        self.assertFalse(os.path.exists(line.key('staging')))
        self.assertEqual(line.cron(60, check=0).all, '')

    def test_dns_is_down(self):
        line = self.line()
        for dns in self.own, self.resolver:
            dns.fault('servfail')
        self.now(line)
        self.assertTrue(line.swapped())

    def test_a_hook_that_fails(self):
        """It holds up nothing: what is known to others must not be used a minute longer."""
        line = self.line('settled')
        light_hook(line, KEYCHANGE, 'exit 3')
        self.now(line, check=1)
        self.assertNotEqual(spki(line.key()), World.old)
        self.assertEqual(line.log(), [CERTCHANGE, KEYCHANGE])

    def test_now_is_for_new_keys(self):
        line = self.line()
        for args in ('renew', '--now'), ('cron', '--new-key', '--now'), ('cron', '--now'):
            line.run(*args, check=2)
        self.assertFalse(line.swapped())

    def test_the_staged_key_is_not_published_at_once(self):
        """Without --now."""
        line = self.line()
        done = line.run('renew', '--new-key', hooks=True, check=0, after=60)
        self.assertIn('staged already', done.stdout)
        self.assertFalse(line.swapped())


class Standby(Case):
    def staged(self):
        line = self.line('settled', standby='yes')
        line.cron(check=0)
        self.assertEqual(line.digests(), {spki(line.key()), spki(line.key('staging'))})
        self.assertEqual(spki(line.key()), World.old)
        return line

    def test_a_key_that_stands_by(self):
        line = self.staged()
        for days in 1, 40:
            line.cron(days * DAY, check=0)
            self.assertEqual(spki(line.key()), World.old)
        self.assertEqual(line.cron(40 * DAY + 60, check=0).all, '')
        second = spki(line.key('staging'))
        line.run('renew', '--new-key', '--now', hooks=True, check=0, after=41 * DAY)
        self.assertEqual(spki(line.key()), second)
        # The next one takes its place.
        line.cron(41 * DAY + 60, check=0)
        third = spki(line.key('staging'))
        self.assertNotIn(third, (World.old, second))
        self.assertEqual(line.digests(), {second, third})

    def test_its_turn(self):
        """When the live key is old it goes live, and not a moment before DNS was seen to have it;
        its own age begins there."""
        line = self.staged()
        second = spki(line.key('staging'))
        line.age('live', 400)
        line.age('staging', 390)
        self.resolver.fault('servfail')
        line.cron(2 * HOUR)
        self.assertEqual(spki(line.key()), World.old)
        self.resolver.clear()
        line.cron(3 * HOUR, check=0)
        self.assertEqual(spki(line.key()), World.old)
        line.cron(4 * HOUR + 100, check=0)
        self.assertEqual(spki(line.key()), second)
        line.cron(5 * HOUR + 200, check=0)
        line.cron(6 * HOUR + 300, check=0)
        self.assertEqual(spki(line.key()), second)
        self.assertEqual(line.digests(), {second, spki(line.key('staging'))})

    def test_it_is_not_in_dns(self):
        """A key that stands by helps only if it is published: each run looks."""
        line = self.line('settled', standby='yes')
        line.write('lie')
        done = line.cron()
        self.assertIn(self.own.address, done.all)
        line.write('hooks.log')
        done = line.cron(25 * HOUR)
        self.assertIn(self.own.address, done.all)
        self.assertEqual(line.log(), [KEYCHANGE])


# ---- what it tells ------------------------------------------------------------------------------

class Tlsa(Case):
    """The command tlsa without --check."""

    def run_tlsa(self, *args, check=0, **options):
        line = self.made or self.line(**options)
        before = line.snapshot()
        done = line.run('tlsa', *args, check=check)
        self.assertEqual(line.snapshot(), before)
        self.assertEqual((self.own.count(), self.resolver.count()), (0, 0))
        if not check:
            self.assertEqual(done.stderr, '')
        return done

    def test_lines_of_a_zone_file(self):
        self.assertEqual(self.run_tlsa().stdout, ''.join(
            '%s. 3600 IN TLSA 3 1 1 %s\n' % (NAME, digest) for digest in (World.old, World.new)))

    def test_one_key(self):
        done = self.run_tlsa('--ttl', '86400', start='settled')
        self.assertEqual(done.stdout, '%s. 86400 IN TLSA 3 1 1 %s\n' % (NAME, World.old))

    def test_several_names(self):
        done = self.run_tlsa('--ttl=7', tlsa=[NAME + '.', OTHER])
        found = [(owner, ttl, words) for owner, _, ttl, words in read_zone(done.stdout)]
        self.assertEqual(found, [(name, 7, ['3', '1', '1', digest]) for name in (NAME, OTHER)
                                 for digest in (World.old, World.new)])
        self.assertTrue(all(line.split()[0].endswith('.') and not line.split()[0].endswith('..')
                            for line in done.stdout.splitlines()))

    def test_json(self):
        done = self.run_tlsa('--json', '--ttl', '7')
        self.assertEqual(json.loads(done.stdout), [
            {'name': NAME + '.', 'ttl': 7, 'usage': 3, 'selector': 1, 'matching_type': 1,
             'data': digest} for digest in (World.old, World.new)])

    def test_nsupdate(self):
        """The whole record set of a name is replaced in one transaction; each name has its own, for
        they may be of several zones, of which no server takes both at once."""
        done = self.run_tlsa('--nsupdate', '--ttl', '7', tlsa=[NAME, OTHER])
        lines = [re.sub(' IN | TLSA| +', ' ', line).split() for line in done.stdout.splitlines()]
        self.assertEqual(lines, [words for name in (NAME + '.', OTHER + '.') for words in (
            ['update', 'delete', name],
            ['update', 'add', name, '7', '3', '1', '1', World.old],
            ['update', 'add', name, '7', '3', '1', '1', World.new],
            ['send'])])
        self.assertEqual(done.stdout.count('TLSA'), 6)

    def test_the_same_name_more_than_once(self):
        """However it is written: servers refuse, or warn of, the same record twice."""
        names = [NAME, NAME + '.', NAME.replace('mx', 'MX'), OTHER, NAME]
        for form, count in ((), 4), (('--json',), 4), (('--nsupdate',), 6):
            with self.subTest(form):
                done = self.run_tlsa(*form, tlsa=names)
                self.assertEqual(done.stdout.lower().count('_tcp.'), count)
                self.assertEqual(done.stdout.count('_25._tcp.mx.example.org.'), count // 2)

    def test_rsa(self):
        line = self.line('settled')
        support.openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048',
                        '-out', line.key())
        self.assertEqual(line.run('tlsa', check=0).stdout.split()[-1], spki(line.key()))

    def test_never_the_digest_of_nothing(self):
        for which in 'live', 'staging':
            for text in '', 'no key\n', '-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n':
                for form in (), ('--json',), ('--nsupdate',):
                    with self.subTest(key=which, text=text, form=form):
                        line = self.made or self.line()
                        line.write('keys/%s.key' % which, text)
                        done = line.run('tlsa', *form, check=1)
                        self.assertEqual(done.stdout, '')
                        self.assertIn(line.key(which), done.stderr)
                        self.assertNotIn(NOTHING, done.all)
            shutil.copy(os.path.join(World.folder, 'staged', 'keys', which + '.key'),
                        self.made.key(which))
        os.unlink(self.made.key())
        self.assertIn(self.made.key(), self.run_tlsa(check=1).stderr)

    def test_not_configured(self):
        line = self.line(tlsa=None)
        for args in (), ('--json',), ('--check',):
            done = line.run('tlsa', *args, check=2)
            self.assertIn('tlsa', done.stderr)
            self.assertEqual(done.stdout, '')

    def test_wrong_usage(self):
        line = self.line()
        for args in (('--ttl', '0'), ('--ttl', '-1'), ('--ttl', 'day'), ('--ttl', '2147483648'),
                     ('--json', '--nsupdate'), ('--check', '--json'), ('--new-key',), ('x',)):
            with self.subTest(args):
                done = line.run('tlsa', *args, check=2)
                self.assertEqual(done.stdout, '')
        line.run('cron', '--json', check=2)

    def test_names_that_cannot_be(self):
        for name in ('mx.example.org', '25._tcp.mx.example.org', '_25.mx.example.org', '_25._tcp.',
                     '_99999._tcp.mx.example.org', '_25._tcp.mx..example.org',
                     '_25._tcp.%s.example.org' % ('m' * 64)):
            with self.subTest(name):
                done = self.line('settled', tlsa=[NAME, name]).run('tlsa', check=2)
                self.assertIn('tlsa', done.stderr)
                self.assertEqual(done.stdout, '')

    def test_no_time_for_staging(self):
        done = self.line('settled', staging_hours=0).run('cron', hooks=True, check=2)
        self.assertIn('staging-hours', done.stderr)


class Check(Case):
    """tlsa --check"""

    def check(self, status, *words, start='staged', zone=None, **options):
        line = self.line(start, **options)
        if zone is not None:
            line.write('zone', zone)
        before = line.snapshot()
        done = line.run('tlsa', '--check')
        self.assertEqual(done.returncode, status, done.all)
        self.assertEqual(line.snapshot(), before)
        for word in words:
            self.assertRegex(done.stdout, word)
        return done

    def test_all_is_well(self):
        self.check(0)
        self.check(0, start='settled')

    def test_missing(self):
        self.check(1, NAME, self.own.address, "'staging'", zone=tlsa_line(World.old))
        done = self.check(1, NAME, "'live'", zone=tlsa_line(World.new), start='settled')
        self.assertRegex(done.stdout, World.new)
        self.check(1, NAME, 'no TLSA record', zone='')

    def test_stale(self):
        """Also beside the right ones."""
        self.check(1, NAME, '3 1 1 ' + 'cd' * 32, start='settled',
                   zone=tlsa_line(World.old) + tlsa_line('cd' * 32))

    def test_unsigned(self):
        self.resolver.ad = False
        self.check(1, r'\bAD\b', self.resolver.address)

    def test_servfail(self):
        self.resolver.fault('servfail')
        self.check(1, 'SERVFAIL', self.resolver.address)

    def test_a_server_lags(self):
        self.own.records = lambda: BASE + MX + tlsa_line(World.old)
        self.check(1, self.own.address, "'staging'")

    def test_a_server_is_down(self):
        self.own.stop()
        self.check(1, self.own.address)
        self.own.start()

    def test_ttl_too_long(self):
        self.own.ttl = 1801
        self.check(1, 'TTL', '1801', 'staging-hours')
        self.own.ttl = 1800
        self.check(0)

    def test_two_names(self):
        done = self.check(1, OTHER, start='settled', tlsa=[NAME, OTHER])
        self.assertNotIn(NAME, done.stdout)
        self.check(0, start='settled', tlsa=[NAME, OTHER], zone=''.join(
            tlsa_line(World.old, name=name) for name in (NAME, OTHER)))

    def test_without_a_certificate_that_can_be_read(self):
        for text in None, '', 'x', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n':
            with self.subTest(text):
                line = self.line('settled')
                os.unlink(line.crt())
                if text is not None:
                    line.write('certs/live.crt', text)
                done = line.run('tlsa', '--check')
                self.assertEqual(done.returncode, 1, done.all)

    def test_a_record_that_is_none(self):
        self.check(1, zone='%s 60 TLSA 3 1\n' % NAME)


class Quiet(Case):
    """What asks nobody and changes nothing."""

    def assert_alone(self, line, *args, **options):
        before, asked = line.snapshot(), len(World.ca.requests)
        done = line.run(*args, **options)
        self.assertEqual(line.snapshot(), before)
        self.assertEqual((self.own.count(), self.resolver.count(), len(World.ca.requests)),
                         (0, 0, asked))
        return done

    def test_nothing_is_due(self):
        line = self.line('settled')
        self.assertEqual(self.assert_alone(line, 'cron', hooks=True, check=0).all, '')

    def test_a_dry_run(self):
        line = self.line()
        for after in 0, 2 * HOUR:
            done = self.assert_alone(line, '-n', 'cron', after=after, check=0)
            self.assertRegex(done.stdout, r'\A\S.*\S\n\Z')
            self.assertFalse(done.stdout.rstrip().endswith(':'), done.stdout)

    def test_status_of_what_is_stuck(self):
        """A key that is not in DNS, though the hook says so: that may last a while, not days."""
        line = self.line()
        line.forget('seen')
        found = [self.assert_alone(line, 'status', after=days * DAY) for days in (1, 3, 20)]
        self.assertEqual([done.returncode for done in found], [0, 1, 1])
        self.assertIn('not seen in DNS', found[-1].stdout)

    def test_status(self):
        line = self.line()
        done = self.assert_alone(line, 'status', check=0)
        for word in World.old, World.new, 'in DNS', 'goes live':
            self.assertIn(word, done.stdout)


if __name__ == '__main__':
    unittest.main()
