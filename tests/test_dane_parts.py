"""The pieces of DANE: DNS messages, whose word counts, aliases, and what TLSA records match."""
import contextlib
import hashlib
import itertools
import os
import random
import socket
import struct
import threading
import time
import unittest
from types import SimpleNamespace
from unittest import mock

import letsencrypt_tiny
from letsencrypt_tiny import (A, AAAA, CNAME, NS, SOA, TLSA, Answer, dns_ask, dns_follow, dns_name,
                              dns_parse, dns_resolve, dns_resolver, tlsa_compare)
from tests.fake_ca import PKI
from tests.fake_dns import AA, AD, QR, RD, FakeDNS, Writer, has_ipv6, read_query
from tests.support import PATIENCE, free_port, openssl, wait_for

NAME, HOST = '_25._tcp.mx.example.org', 'mx.example.org'
ZONE = '''
example.org 300 SOA ns1.example.org hostmaster.example.org 7 3600 600 86400 60
example.org 300 NS ns1.example.org
mx.example.org 60 A 192.0.2.1
mx.example.org 60 AAAA 2001:db8::1
%s. 60 IN TLSA 3 1 1 %s
alias.example.org 120 CNAME MX.Example.ORG
far.example.org 600 CNAME alias.example.org
here.example.org 60 CNAME there.example.org
there.example.org 60 CNAME here.example.org
''' % (NAME, 'ab' * 32)
RECORD = b'\3\1\1' + b'\xab' * 32


def message(name=NAME, kind=TLSA, flags=QR, records=(), authority=()):
    """A DNS answer (bytes); records: (owner, type, TTL, words)."""
    writer = Writer(1, flags, (name, kind))
    for section, some in (1, records), (2, authority):
        for record in some:
            writer.record(section, *record)
    return writer.done()


def header(*counts):
    return struct.pack('!6H', 1, QR, *counts)


@contextlib.contextmanager
def ten_times_as_fast(silent=lambda: True):
    """What waits in this process waits a tenth of the time; for a server only if it is silent()."""
    plain, monotonic, now, start = (socket.socket.settimeout, time.monotonic, time.time,
                                    (time.monotonic(), time.time()))

    def settimeout(sock, seconds):
        plain(sock, seconds / 10 if seconds and silent() else seconds)

    with mock.patch.object(socket.socket, 'settimeout', settimeout), \
            mock.patch.object(time, 'monotonic',
                              lambda: start[0] + 10 * (monotonic() - start[0])), \
            mock.patch.object(time, 'time', lambda: start[1] + 10 * (now() - start[1])):
        yield


# ---- messages -----------------------------------------------------------------------------------

class Names(unittest.TestCase):
    def test_plain(self):
        self.assertEqual(dns_name(b'\2mx\7example\3org\0rest', 0), ('mx.example.org', 16))

    def test_the_root_has_no_labels(self):
        self.assertEqual(dns_name(b'\0', 0), ('', 1))

    def test_upper_case_is_the_same_name(self):
        self.assertEqual(dns_name(b'\2MX\7Example\3oRg\0', 0)[0], 'mx.example.org')

    def test_pointers(self):
        data = b'\7example\3org\0' + b'\2mx\xc0\0' + b'\4_tcp\xc0\x0d' + b'after'
        self.assertEqual(dns_name(data, 18), ('_tcp.mx.example.org', 25))
        self.assertEqual(data[25:], b'after')

    def test_a_pointer_far_into_the_message(self):
        data = b'x' * 1000 + b'\3org\0' + b'\xc3\xe8'
        self.assertEqual(dns_name(data, 1005), ('org', 1007))

    def test_bytes_that_are_no_letters(self):
        name, end = dns_name(b'\3\xff\0.\0', 0)
        self.assertEqual(end, 5)
        self.assertTrue(name.isascii() and len(name) > 3, name)

    def test_what_has_no_end(self):
        for data in (b'\xc0\0', b'\xc0\2\xc0\0', b'\1a\xc0\0', b'', b'\5ab', b'\2ab', b'\xc0',
                     b'\xff\xff', b'\1a' * 5000):
            with self.subTest(data[:9]), self.assertRaises((ValueError, IndexError)):
                dns_name(data, 0)


class Messages(unittest.TestCase):
    def test_records(self):
        answer = dns_parse(message(flags=QR | AD, records=[
            ('Alias.Example.org', 'CNAME', 120, [NAME]),
            (NAME, 'TLSA', 60, ['3', '1', '1', 'ab' * 32]),
            ('example.org', 'NS', 2 ** 31 - 1, ['ns1.example.org'])], authority=[
                ('example.org', 'SOA', 5, 'ns1 hostmaster 1 2 3 4 5'.split())]))
        self.assertEqual(answer.records, [
            ('alias.example.org', CNAME, 120, NAME), (NAME, TLSA, 60, RECORD),
            ('example.org', NS, 2 ** 31 - 1, 'ns1.example.org')])
        self.assertEqual([record[:3] for record in answer.authority], [('example.org', SOA, 5)])

    def test_flags(self):
        for flags in itertools.product((0, AD), (0, AA), (0, 2, 3, 5)):
            answer = dns_parse(message(flags=QR | sum(flags)))
            self.assertEqual((answer.authentic, answer.authoritative, answer.code),
                             (bool(flags[0]), bool(flags[1]), flags[2]))

    def test_the_answer_of_a_server(self):
        """As it comes, with compression and an OPT record."""
        dns = FakeDNS(ZONE, ad=True)
        query = message()[:2] + b'\1\x20' + b'\0\1\0\0\0\0\0\1' + message()[12:] + bytes(
            [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0])
        data, _ = dns.respond(query, 'udp', 1)
        self.assertIn(b'\xc0\x0c', data)
        answer = dns_parse(data)
        self.assertEqual(answer, Answer(0, True, False, [(NAME, TLSA, 60, RECORD)], []))

    def test_cut_at_every_byte(self):
        whole = message(records=[(NAME, 'TLSA', 60, ['3', '1', '1', 'ab' * 32]),
                                 ('x.example.org', 'CNAME', 60, ['y.example.org'])])
        self.assertEqual(len(dns_parse(whole).records), 2)
        for size in range(len(whole)):
            with self.subTest(size), self.assertRaises((ValueError, IndexError)):
                dns_parse(whole[:size])

    def test_more_records_than_there_are(self):
        for counts in (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (65535,) * 4:
            with self.subTest(counts), self.assertRaises((ValueError, IndexError)):
                dns_parse(header(*counts))

    def test_a_name_that_points_at_itself(self):
        for data in (header(1, 0, 0, 0) + b'\xc0\x0c\0\1\0\1',
                     header(0, 1, 0, 0) + b'\xc0\x0c' + bytes(10),
                     header(0, 1, 0, 0) + b'\0\0\5\0\1' + bytes(4) + b'\0\2\xc0\x17'):
            with self.subTest(data), self.assertRaises((ValueError, IndexError)):
                dns_parse(data)

    def test_broken_at_random(self):
        """Whatever comes is an answer or none, soon."""
        dice = random.Random(5)
        whole = message(flags=QR | AD, records=[
            ('alias.example.org', 'CNAME', 120, [NAME]),
            (NAME, 'TLSA', 60, ['3', '1', '1', 'ab' * 32]),
            (NAME, 'TLSA', 60, ['2', '0', '2', 'cd' * 64])], authority=[
                ('example.org', 'SOA', 5, 'ns1 hostmaster 1 2 3 4 5'.split())])
        good = bad = 0
        for _ in range(3000):
            data = bytearray(whole)
            for _ in range(dice.choice((1, 1, 2, 5, 30))):
                what, at = dice.random(), dice.randrange(len(data))
                if what < .6:
                    data[at] = dice.choice((0, 1, 63, 64, 191, 192, 255, dice.randrange(256)))
                elif what < .8:
                    del data[at:at + dice.randrange(1, 9)]
                else:
                    data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
                data = data or bytearray(1)
            try:
                answer = dns_parse(bytes(data))
                for name in NAME, 'alias.example.org':
                    _, ttl, found = dns_follow(answer, name, TLSA)
                    self.assertTrue(all(isinstance(record, bytes) for record in found) and ttl >= 0)
                    tlsa_compare(found, {})
                good += 1
            except (ValueError, IndexError):
                bad += 1
        for _ in range(1000):
            with contextlib.suppress(ValueError, IndexError):
                dns_parse(bytes(dice.randrange(256) for _ in range(dice.randrange(200))))
        self.assertGreater(min(good, bad), 200)

    def test_as_much_as_fits_in_a_message(self):
        """By TCP a server can send 64 KB: that takes no minutes."""
        tiny = b'\0' + struct.pack('!2HIH', TLSA, 1, 60, 0)
        alias = b'\2%c%c\0' + struct.pack('!2HIH', CNAME, 1, 60, 4) + b'\2%c%c\0'
        # Names of 127 labels, each a pointer to the one before, and aliases in the wrong order
        steps = b'\1a\0' + b''.join(b'\1a' + struct.pack('!H', 0xc000 | 12 + max(0, at))
                                    for at in range(-1, 4 * 125 - 1, 4))
        deep = b'\xc1\xf7' + struct.pack('!2HIH', TLSA, 1, 60, 0)
        for name, data in (
                ('tiny records', header(0, 5950, 0, 0) + tiny * 5950),
                ('aliases', header(0, 3600, 0, 0) + b''.join(
                    alias % (97 + at // 64, 97 + at % 64, 97 + (at - 1) // 64, 97 + (at - 1) % 64)
                    for at in range(3600))),
                ('long names', header(0, 5000, 0, 0) + steps + deep * 5000)):
            with self.subTest(name):
                start = time.process_time()
                with contextlib.suppress(ValueError, IndexError):
                    dns_follow(dns_parse(data[:65535]), 'xx', TLSA)
                self.assertLess(time.process_time() - start, 10)


# ---- aliases ------------------------------------------------------------------------------------

class Aliases(unittest.TestCase):
    def follow(self, name, kind, *records):
        return dns_follow(Answer(0, True, False, list(records), []), name, kind)

    def test_none(self):
        self.assertEqual(self.follow(NAME, TLSA, (NAME, TLSA, 60, RECORD), (NAME, TLSA, 60, b'x')),
                         (NAME, 60, [RECORD, b'x']))

    def test_upper_case_and_a_dot_at_the_end(self):
        self.assertEqual(self.follow(NAME.upper() + '.', TLSA, (NAME, TLSA, 60, RECORD)),
                         (NAME, 60, [RECORD]))

    def test_nothing(self):
        self.assertEqual(self.follow(NAME, TLSA), (NAME, 0, []))

    def test_a_chain_in_any_order(self):
        chain = [('a', CNAME, 10, 'b'), ('b', CNAME, 10, 'c'), ('c', TLSA, 10, RECORD)]
        for records in itertools.permutations(chain):
            self.assertEqual(self.follow('a', TLSA, *records), ('c', 10, [RECORD]))

    def test_the_longest_ttl_counts(self):
        for ttls in (600, 20, 10), (10, 600, 20), (10, 20, 600):
            self.assertEqual(self.follow('a', TLSA, ('a', CNAME, ttls[0], 'b'), (
                'b', CNAME, ttls[1], 'c'), ('c', TLSA, ttls[2], RECORD)), ('c', 600, [RECORD]))

    def test_an_alias_of_nothing(self):
        self.assertEqual(self.follow('a', TLSA, ('a', CNAME, 60, 'b')), ('b', 60, []))

    def test_what_is_not_asked_for_does_not_count(self):
        self.assertEqual(self.follow('a', TLSA, ('b', TLSA, 900, RECORD), ('a', A, 900, b'1234'),
                                     ('c', CNAME, 900, 'a'))[2], [])

    def test_the_alias_itself_can_be_asked_for(self):
        self.assertEqual(self.follow('a', CNAME, ('a', CNAME, 60, 'b'), ('b', CNAME, 60, 'c')),
                         ('a', 60, ['b']))

    def test_round_in_circles(self):
        for records in ([('a', CNAME, 60, 'a')],
                        [('a', CNAME, 60, 'b'), ('b', CNAME, 60, 'a')],
                        [('a', CNAME, 60, 'b'), ('b', CNAME, 60, 'c'), ('c', CNAME, 60, 'b')]):
            self.assertEqual(self.follow('a', TLSA, *records)[2], [])


# ---- asking -------------------------------------------------------------------------------------

class Asking(unittest.TestCase):
    """dns_ask() against a server."""

    def setUp(self):
        self.dns = FakeDNS(ZONE).start()
        self.addCleanup(self.dns.stop)

    def ask(self, name=NAME, kind=TLSA, **options):
        return dns_ask(self.dns.address, name, kind, **options)

    def refused(self):
        """The words when there is no answer."""
        with self.assertRaises(ValueError) as caught:
            self.ask()
        self.assertIn(self.dns.address, str(caught.exception))
        return str(caught.exception)

    def test_an_answer(self):
        self.assertEqual(self.ask(), Answer(0, True, False, [(NAME, TLSA, 60, RECORD)], []))
        self.assertEqual(self.dns.count(), 1)

    def test_names_are_asked_as_people_write_them(self):
        for name in NAME + '.', NAME.upper():
            self.assertEqual(self.ask(name).records, [(NAME, TLSA, 60, RECORD)])

    def test_every_kind(self):
        for name, kind, data in (
                (HOST, A, socket.inet_pton(socket.AF_INET, '192.0.2.1')), (HOST, AAAA,
                 socket.inet_pton(socket.AF_INET6, '2001:db8::1')),
                ('example.org', NS, 'ns1.example.org'), (NAME, TLSA, RECORD)):
            answer = self.ask(name, kind)
            self.assertEqual([record[3] for record in answer.records], [data])

    def test_an_alias_chain(self):
        answer = self.ask('far.example.org', A)
        self.assertEqual(dns_follow(answer, 'far.example.org', A)[:2], (HOST, 600))

    def test_an_alias_loop(self):
        self.assertEqual(dns_follow(self.ask('here.example.org', A), 'here.example.org', A)[2], [])

    def test_nothing_there(self):
        answer = self.ask('nothing.example.org')
        self.assertEqual((answer.code, answer.authentic, answer.records), (3, True, []))
        self.assertEqual([record[:2] for record in answer.authority], [('example.org', SOA)])
        answer = self.ask(HOST)
        self.assertEqual((answer.code, answer.records), (0, []))

    def test_the_question(self):
        """Recursion, AD and room for more than 512 bytes are asked for; names cannot be guessed."""
        for _ in range(12):
            self.ask()
        queries = self.dns.queries
        self.assertEqual(self.dns.broken, [])
        self.assertEqual({query.flags for query in queries}, {RD | AD})
        self.assertTrue(all(512 < query.edns <= 4096 for query in queries))
        self.assertGreater(len({query.ident for query in queries}), 9)
        self.assertGreater(len({query.port for query in queries}), 4)

    def test_a_zones_own_server_is_not_asked_to_recurse(self):
        self.ask(recurse=False)
        self.assertFalse(self.dns.queries[0].flags & RD)

    def test_ipv6(self):
        if not has_ipv6():
            with self.assertRaises((ValueError, OSError)):
                dns_ask('::1@%d' % self.dns.port, NAME, TLSA)
            return
        self.assertEqual(dns_ask(self.dns.address6, NAME, TLSA).records[0][3], RECORD)
        self.dns.fault('truncated')
        self.assertEqual(dns_ask(self.dns.address6, NAME, TLSA).records[0][3], RECORD)

    def test_cut_short_by_udp(self):
        self.dns.fault('truncated')
        self.assertEqual(self.ask().records, [(NAME, TLSA, 60, RECORD)])
        self.assertEqual([query.way for query in self.dns.queries], ['udp', 'tcp'])

    def test_more_records_than_udp_holds(self):
        self.dns.records = ''.join('%s 60 TLSA 3 1 1 %s\n' % (NAME, '%064x' % count)
                                   for count in range(400))
        self.assertEqual(len(self.ask().records), 400)
        self.assertEqual(self.dns.count(way='tcp'), 1)

    def test_one_bad_answer_is_asked_again(self):
        for what in 'wrong-id', 'wrong-question', 'garbage', 'cut', 'loop':
            with self.subTest(what):
                self.dns.clear()
                self.dns.fault(what, times=1)
                self.assertEqual(self.ask().records, [(NAME, TLSA, 60, RECORD)])
                self.assertEqual(self.dns.count(), 2)

    def test_a_lost_query_is_asked_again(self):
        self.dns.fault('silent', times=1)
        with ten_times_as_fast(lambda: self.dns.faults):
            self.assertEqual(self.ask().records, [(NAME, TLSA, 60, RECORD)])

    def test_no_answer(self):
        for what in 'wrong-id', 'wrong-question', 'garbage', 'cut', 'loop', 'silent':
            with self.subTest(what), ten_times_as_fast():
                self.dns.clear()
                self.dns.fault(what)
                self.refused()
                wait_for(lambda: self.dns.count() > 1, PATIENCE, 'more than one try')
                self.assertLess(self.dns.count(), 6)

    def test_our_own_question_is_no_answer(self):
        """Whatever sends packets back must not pass for a validated answer: it has our AD."""
        self.dns.fault('echo')
        self.refused()

    def test_no_answer_by_tcp(self):
        """As behind a firewall that knows only UDP."""
        self.dns.fault('truncated')
        self.dns.without_tcp = True
        with ten_times_as_fast():
            self.refused()

    def test_half_an_answer_by_tcp(self):
        """Whatever was in the other half: the rest of a record set, for example."""
        for count in 0, 1, 5, 40:
            self.dns.records = ''.join('%s 60 TLSA 3 1 1 %064x\n' % (NAME, number)
                                       for number in range(count))
            self.dns.clear()
            self.dns.fault('hang-up')
            with self.subTest(count), ten_times_as_fast():
                self.refused()
        self.assertTrue(self.dns.count(way='tcp'))

    def test_an_answer_that_never_ends(self):
        """A server that sends a byte now and then cannot hold up the run."""
        self.dns.records = ''.join('%s 60 TLSA 3 1 1 %064x\n' % (NAME, count)
                                   for count in range(100))
        self.dns.fault('dribble', seconds=0.02)     # 0.02 s * 4.7 KB: a minute and a half

        def ask():
            with contextlib.suppress(ValueError, OSError):
                self.ask()

        with ten_times_as_fast():
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(30)
        slow = thread.is_alive()
        self.dns.stop()
        thread.join()
        self.assertFalse(slow)

    def test_nobody_there(self):
        self.dns.stop()
        with self.assertRaises(ValueError) as caught:
            dns_ask('127.0.0.1@%d' % free_port(), NAME, TLSA)
        self.assertIn('127.0.0.1', str(caught.exception))
        self.dns.start()

    def test_errors_are_answers(self):
        for what, code in ('servfail', 2), ('nxdomain', 3), ('refused', 5):
            self.dns.clear()
            self.dns.fault(what)
            self.assertEqual(self.ask().code, code)


# ---- whose word counts --------------------------------------------------------------------------

def answer(authentic=False, authoritative=False, code=0):
    return Answer(code, authentic, authoritative, [(NAME, TLSA, 60, RECORD)], [])


class Trust(unittest.TestCase):
    """dns_resolve(): AD from this machine or a resolver that is named, AA only if it is named."""

    def resolve(self, reply, named=None, file=b'nameserver 127.0.0.1\n'):
        with mock.patch.object(letsencrypt_tiny, 'dns_ask', lambda *_: reply), \
                mock.patch.object(letsencrypt_tiny, 'read_file', return_value=file):
            return dns_resolve(SimpleNamespace(dns_resolver=named), NAME, TLSA)

    def refusal(self, *args, **options):
        with self.assertRaises(ValueError) as caught:
            self.resolve(*args, **options)
        self.assertIn(NAME, str(caught.exception))
        return str(caught.exception)

    def test_believed(self):
        remote = b'nameserver 192.0.2.53\n'
        for named, file, reply in (
                (None, b'nameserver 127.0.0.1\n', answer(True)),
                (None, b'nameserver 127.0.0.53\n', answer(True)),
                (None, b'nameserver ::1\n', answer(True)),
                (None, b'', answer(True)),
                ('192.0.2.53', remote, answer(True)),
                ('192.0.2.53@5353', remote, answer(False, True)),
                ('127.0.0.1', remote, answer(False, True)),
                ('2001:db8::53', remote, answer(True, True))):
            with self.subTest(named=named, file=file):
                self.assertEqual(self.resolve(reply, named, file), reply)

    def test_neither_ad_nor_aa(self):
        for named in None, '192.0.2.53', '127.0.0.1@53':
            words = self.refusal(answer(), named)
            self.assertIn('AD', words)
            self.assertIn(named or '127.0.0.1', words)

    def test_ad_from_far_away(self):
        """Anyone on the way could have set it."""
        for file in b'nameserver 192.0.2.53\n', b'nameserver 2001:db8::53\n', \
                b'nameserver 192.0.2.53\nnameserver 127.0.0.1\n', b'nameserver ::1234\n':
            words = self.refusal(answer(True), None, file)
            self.assertIn('dns-resolver', words)

    def test_aa_of_a_server_that_is_not_named(self):
        """It is told what would help, and not that AA was missing."""
        words = self.refusal(answer(False, True))
        self.assertIn('dns-resolver', words)
        self.assertNotRegex(words, 'neither AD nor AA|no AA')
        self.assertIn('dns-resolver', self.refusal(answer(True, True), None,
                                                   b'nameserver 192.0.2.53\n'))

    def test_nothing_there_is_believed_if_validated(self):
        self.assertEqual(self.resolve(answer(True, code=3)).code, 3)
        self.refusal(answer(code=3))

    def test_errors(self):
        for code, word in (2, 'SERVFAIL'), (5, '5|REFUSED'), (1, '1|FORMERR'):
            for authentic in True, False:   # AD says nothing about an error
                words = self.refusal(answer(authentic, True, code), '127.0.0.1')
                self.assertRegex(words.replace('127.0.0.1', ''), word)

    def test_the_resolver_of_this_machine(self):
        for file, server in ((b'nameserver 192.0.2.1\nnameserver 192.0.2.2\n', '192.0.2.1'),
                             (b'# nameserver 192.0.2.9\nsearch x\nnameserver\t::1\n', '::1'),
                             (b'search example.org\n', '127.0.0.1'), (None, '127.0.0.1')):
            with mock.patch.object(letsencrypt_tiny, 'read_file', return_value=file):
                self.assertEqual(dns_resolver(SimpleNamespace(dns_resolver=None)), server)
                self.assertEqual(dns_resolver(SimpleNamespace(dns_resolver='192.0.2.7@5353')),
                                 '192.0.2.7@5353')


# ---- what matches -------------------------------------------------------------------------------

def digests(der):
    return [der, hashlib.sha256(der).digest(), hashlib.sha512(der).digest()]


class Matching(unittest.TestCase):
    """tlsa_compare(): certificates of two keys, and the issuer of both."""

    @classmethod
    def setUpClass(cls):
        pki = PKI.get('ec', 1)
        span = time.time() - 100, time.time() + 100000
        cls.chains, cls.certs = {}, {}
        cls.certs['issuer'] = (pki.intermediates[0], cls.public(pki.path('intermediate1.key')))
        for which, (_, spki) in (('live', cls.new_key(pki, 'one')),
                                   ('staging', cls.new_key(pki, 'two'))):
            cls.certs[which] = pki.certificate('example.org', spki, span), spki
            cls.chains[which] = [cls.certs[which][0], pki.intermediates[0]]
        cls.live = {'live': cls.chains['live']}

    @classmethod
    def new_key(cls, pki, name):
        file = pki.path('matching-' + name)
        openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', file)
        cls.addClassCleanup(os.unlink, file)
        return file, cls.public(file)

    @staticmethod
    def public(file):
        return openssl('pkey', '-in', file, '-pubout', '-outform', 'DER')

    def record(self, which, usage, selector, matching):
        """The TLSA record (bytes) of a certificate, made without the program's help."""
        return bytes([usage, selector, matching]) + digests(self.certs[which][selector])[matching]

    def test_every_selector_and_matching_type_of_the_leaf(self):
        for usage, selector, matching in itertools.product((1, 3), (0, 1), (0, 1, 2)):
            with self.subTest(usage=usage, selector=selector, matching=matching):
                live = self.record('live', usage, selector, matching)
                staging = self.record('staging', usage, selector, matching)
                self.assertEqual(tlsa_compare([live], self.live), ([], []))
                self.assertEqual(tlsa_compare([staging, live], self.chains), ([], []))
                missing, stale = tlsa_compare([live], self.chains)
                self.assertEqual(len(missing), 1)
                self.assertIn("'staging'", missing[0])
                self.assertIn('%d %d %d' % (usage, selector, matching), missing[0])
                self.assertEqual(stale, [])
                missing, stale = tlsa_compare([staging], self.live)
                self.assertIn("'live'", missing[0])
                self.assertEqual(stale, [staging])

    def test_every_selector_and_matching_type_of_the_issuer(self):
        for usage, selector, matching in itertools.product((0, 2), (0, 1), (0, 1, 2)):
            with self.subTest(usage=usage, selector=selector, matching=matching):
                record = self.record('issuer', usage, selector, matching)
                self.assertEqual(tlsa_compare([record], self.chains), ([], []))
                wrong = record[:-1] + bytes([record[-1] ^ 1])
                self.assertEqual(tlsa_compare([wrong, record], self.chains), ([], [wrong]))
                self.assertEqual(len(tlsa_compare([wrong], self.chains)[0]), 2)

    def test_an_issuer_is_no_leaf(self):
        """Usages 1 and 3 are about the server's own certificate."""
        for usage in 1, 3:
            record = self.record('issuer', usage, 1, 1)
            missing, stale = tlsa_compare([record], self.live)
            self.assertEqual((len(missing), stale), (1, [record]))

    def test_a_leaf_is_no_issuer(self):
        """Usages 0 and 2 are about authorities: no client accepts the server's own key there."""
        for usage in 0, 2:
            record = self.record('live', usage, 1, 1)
            missing, stale = tlsa_compare([record], self.live)
            self.assertEqual((len(missing), stale), (1, [record]))

    def test_every_combination_that_is_used_must_match(self):
        """RFC 7671 section 8: a client may know only one of them."""
        both = [self.record(which, 3, 1, 1) for which in ('live', 'staging')]
        self.assertEqual(tlsa_compare(both, self.chains), ([], []))
        more = self.record('live', 3, 1, 2)
        missing, stale = tlsa_compare(both + [more], self.chains)
        self.assertEqual((len(missing), stale), (1, []))
        self.assertIn('3 1 2', missing[0])
        self.assertEqual(tlsa_compare(both + [more, self.record('staging', 3, 1, 2)], self.chains),
                         ([], []))
        self.assertEqual(tlsa_compare(both + [self.record('issuer', 2, 1, 1)], self.chains),
                         ([], []))
        missing, _ = tlsa_compare(both + [self.record('live', 3, 0, 1)], self.chains)
        self.assertEqual(len(missing), 1)

    def test_one_key_for_each_combination_is_not_enough(self):
        found = [self.record('live', 3, 1, 1), self.record('staging', 3, 1, 2)]
        missing, _ = tlsa_compare(found, self.chains)
        self.assertEqual(len(missing), 2)
        self.assertTrue(any('3 1 1' in text and "'staging'" in text for text in missing))
        self.assertTrue(any('3 1 2' in text and "'live'" in text for text in missing))

    def test_records_that_no_client_can_use_are_nothing(self):
        """They neither help nor harm; but they match no key of ours."""
        good = [self.record(which, 3, 1, 1) for which in ('live', 'staging')]
        digest = good[0][3:]
        unusable = [b'\4\1\1' + digest, b'\3\2\1' + digest, b'\3\1\3' + digest,
                    b'\xff\1\1' + digest, b'\3\1\xff' + digest, b'\3\1', b'\3', b'', b'\3\1\1']
        for record in unusable:
            with self.subTest(record[:3]):
                missing, stale = tlsa_compare(good + [record], self.chains)
                self.assertEqual((missing, stale), ([], [record] if digest in record else stale))
                missing, _ = tlsa_compare([record], self.chains)
                self.assertTrue(missing)
        self.assertTrue(tlsa_compare(unusable, self.chains)[0])

    def test_no_record(self):
        missing, stale = tlsa_compare([], self.chains)
        self.assertTrue(missing)
        self.assertEqual(stale, [])

    def test_no_certificate(self):
        self.assertTrue(tlsa_compare([self.record('live', 3, 1, 1)], {'live': []})[0])

    def test_the_same_record_twice(self):
        record = self.record('live', 3, 1, 1)
        self.assertEqual(tlsa_compare([record, record], self.live), ([], []))

    def test_digests_of_another_length(self):
        for record in (self.record('live', 3, 1, 1)[:-1], self.record('live', 3, 1, 1) + b'\0'):
            missing, stale = tlsa_compare([record], self.live)
            self.assertEqual((len(missing), stale), (1, [record]))


# ---- the server of these tests ------------------------------------------------------------------

class Server(unittest.TestCase):
    """tests/fake_dns.py is as strict as a real server."""

    def test_ad_only_for_those_who_ask(self):
        plain = Writer(7, RD, (NAME, TLSA)).done()
        wants = Writer(7, RD | AD, (NAME, TLSA)).done()
        dns = FakeDNS(ZONE, ad=True)
        self.assertEqual([dns_parse(dns.respond(query, 'udp', 1)[0]).authentic
                          for query in (plain, wants)], [False, True])

    def test_512_bytes_without_edns(self):
        dns = FakeDNS(''.join('%s 60 TLSA 3 1 1 %064x\n' % (NAME, count) for count in range(20)))
        short, _ = dns.respond(Writer(7, RD, (NAME, TLSA)).done(), 'udp', 1)
        whole, _ = dns.respond(Writer(7, RD, (NAME, TLSA)).done(), 'tcp', 1)
        self.assertTrue(len(short) <= 512 < len(whole))
        self.assertTrue(short[2] & 2 and not whole[2] & 2)

    def test_what_is_no_query(self):
        query = Writer(7, RD, (NAME, TLSA)).done()
        self.assertEqual(read_query(query).name, NAME)
        answers = FakeDNS(ZONE).respond(query, 'udp', 1)[0]
        for data in b'', query[:11], query[:-1], query + b'x', answers:
            with self.subTest(data), self.assertRaises(ValueError):
                read_query(data)


if __name__ == '__main__':
    unittest.main()
