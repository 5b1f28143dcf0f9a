"""The pieces of acme_tiny: DER, keys, certificates, requests, signatures, texts; openssl judges."""
import base64
import calendar
import datetime
import email.message
import email.utils
import hashlib
import io
import itertools
import json
import os
import subprocess
import tempfile
import time
import unittest
from unittest import mock

import acme_tiny
from acme_tiny import AccountKey, AcmeError, Reply, ToolError
from tests import fake_ca
from tests.fake_ca import PKI, tlv
from tests.support import openssl

# name -> arguments of `openssl genpkey`, (kind, bits)
KEYS = {
    'rsa2048': (('RSA', '-pkeyopt', 'rsa_keygen_bits:2048'), ('rsa', 2048)),
    # (more primes are found sooner, and make no difference to the public half)
    'rsa3072': (('RSA', '-pkeyopt', 'rsa_keygen_bits:3072', '-pkeyopt', 'rsa_keygen_primes:3'),
                ('rsa', 3072)),
    'rsa4096': (('RSA', '-pkeyopt', 'rsa_keygen_bits:4096', '-pkeyopt', 'rsa_keygen_primes:4'),
                ('rsa', 4096)),
    'p256': (('EC', '-pkeyopt', 'ec_paramgen_curve:P-256'), ('ec-p256', 256)),
    'p384': (('EC', '-pkeyopt', 'ec_paramgen_curve:P-384'), ('ec-p384', 384)),
    'p521': (('EC', '-pkeyopt', 'ec_paramgen_curve:P-521'), ('another', 0)),
    'ed25519': (('ED25519',), ('another', 0))}
NAMES = 'example.org', 'www.example.org', 'xn--bcher-kva.example.org'


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)
    return path


def read(path):
    with open(path) as file:
        return file.read()


def body(text):
    """The DER bytes of the only block in a PEM text."""
    return base64.b64decode(''.join(text.strip().split('\n')[1:-1]))


def setUpModule():
    temporary = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(temporary.cleanup)
    Openssl.folder = temporary.name
    for name, (options, _) in KEYS.items():     # once: making keys is slow
        openssl('genpkey', '-algorithm', *options, '-out', os.path.join(temporary.name, name))


class Openssl(unittest.TestCase):
    """`folder` has a key of each kind."""

    def path(self, name):
        return os.path.join(self.folder, name)

    def public(self, name):
        """openssl's word for the public key (DER) of a key file."""
        return openssl('pkey', '-in', self.path(name), '-pubout', '-outform', 'DER')

    def config(self, *lines):
        return write(self.path('openssl.conf'), '\n'.join(
            ('[req]', 'distinguished_name=dn', 'req_extensions=ext', 'x509_extensions=ext',
             '[dn]', '[ext]') + lines) + '\n')

    def certificate(self, key, *lines, subject='/CN=example.org', days=3):
        """A self-signed certificate (PEM) with extensions."""
        return openssl('req', '-x509', '-new', '-key', self.path(key), '-subj', subject,
                       '-days', str(days), '-config', self.config(*lines)).decode()

    def request(self, *lines, subject='/', key='p256'):
        """A certificate request (DER) with extensions."""
        return openssl('req', '-new', '-key', self.path(key), '-subj', subject,
                       '-config', self.config(*lines), '-outform', 'DER')


class Keys(Openssl):

    def test_public_key_and_kind(self):
        for name, (_, kind) in KEYS.items():
            with self.subTest(name):
                spki = acme_tiny.public_key(read(self.path(name)))
                self.assertEqual(spki, self.public(name))
                self.assertEqual(acme_tiny.key_kind(spki), kind)

    def test_no_openssl_for_the_usual_keys(self):
        """A silent cron job starts no other program."""
        with mock.patch('subprocess.run', side_effect=AssertionError('openssl was started')):
            for name in 'rsa2048', 'rsa4096', 'p256', 'p384':
                acme_tiny.public_key(read(self.path(name)))

    def test_old_formats(self):
        for name in 'rsa2048', 'p256', 'p384':
            command = ('rsa', '-traditional') if name[0] == 'r' else ('ec',)
            try:
                text = openssl(command[0], '-in', self.path(name), *command[1:]).decode()
            except AssertionError:      # before OpenSSL 3 that is what it does anyway
                text = openssl(command[0], '-in', self.path(name)).decode()
            with self.subTest(name):
                self.assertIn('RSA PRIVATE KEY' if name[0] == 'r' else 'EC PRIVATE KEY', text)
                self.assertEqual(acme_tiny.public_key(text), self.public(name))

    def test_parameters_before_the_key(self):
        """What `openssl ecparam -genkey` writes: two blocks."""
        path = self.path('ecparam')
        openssl('ecparam', '-name', 'secp384r1', '-genkey', '-out', path)
        self.assertIn('EC PARAMETERS', read(path))
        self.assertEqual(acme_tiny.public_key(read(path)), self.public('ecparam'))

    def test_sec1_without_its_public_half(self):
        """Rare, but legal: the private number alone."""
        items = acme_tiny.inside(acme_tiny.inside(body(read(self.path('p256'))))[2][1])
        bare = tlv(0x30, *(tlv(*item) for item in items if item[0] != 0xa1))
        whole = acme_tiny.inside(body(read(self.path('p256'))))
        pkcs8 = tlv(0x30, tlv(*whole[0]), tlv(*whole[1]), tlv(4, bare))
        path = write(self.path('bare'), fake_ca.pem('PRIVATE KEY', pkcs8))
        self.assertEqual(acme_tiny.public_key(read(path)), self.public('p256'))

    def test_passphrase(self):
        for name, command in ('rsa2048', 'rsa'), ('p256', 'ec'), ('p256', 'pkcs8'):
            extra = ('-topk8', '-v2', 'aes256') if command == 'pkcs8' else ('-aes256',)
            path = self.path('encrypted')
            openssl(command, '-in', self.path(name), '-out', path, '-passout', 'pass:secret',
                    *extra)
            with self.subTest(command), self.assertRaisesRegex(ValueError, 'passphrase'):
                acme_tiny.public_key(read(path))
            with self.assertRaisesRegex(AcmeError, 'passphrase'):
                AccountKey(path)

    def test_what_is_no_key(self):
        certificate = self.certificate('p256', 'subjectAltName=DNS:example.org')
        for text in ('', 'nonsense', certificate, fake_ca.pem('PRIVATE KEY', b'\x30\0'),
                     fake_ca.pem('PRIVATE KEY', b'nonsense'), fake_ca.pem('RSA PRIVATE KEY', b''),
                     fake_ca.pem('EC PRIVATE KEY', tlv(0x30, tlv(2, b'\1')))):
            with self.subTest(text[:60]), self.assertRaises((ValueError, ToolError)):
                acme_tiny.public_key(text)

    def test_every_truncation_of_a_key(self):
        """A file cut short is an error that callers expect, whatever is left of it."""
        for name, label in ('rsa2048', 'PRIVATE KEY'), ('p256', 'PRIVATE KEY'), (
                'p256', 'EC PRIVATE KEY'), ('rsa2048', 'RSA PRIVATE KEY'):
            data = body(read(self.path(name)))
            if label != 'PRIVATE KEY':
                data = acme_tiny.inside(data)[2][1]
            with mock.patch('acme_tiny.openssl', side_effect=ToolError('no key')):
                for count in range(len(data)):
                    with self.assertRaises((ValueError, ToolError), msg='%s %d' % (label, count)):
                        acme_tiny.public_key(fake_ca.pem(label, data[:count]))


class Certificates(Openssl):

    def test_against_openssl(self):
        for key in KEYS:
            text = self.certificate(key, 'subjectAltName=' + ','.join('DNS:' + n for n in NAMES))
            path = write(self.path('certificate'), text)
            found = acme_tiny.parse_certificate(body(text))
            with self.subTest(key):
                self.assertEqual(found.names, list(NAMES))
                self.assertEqual(found.spki, self.public(key))
                self.assertEqual(found.issuer, found.subject)
                self.assertIn(b'example.org', found.subject)
                self.assertEqual(found.not_after - found.not_before, 3 * 86400)
                self.assertLess(abs(found.not_before - time.time()), 60)
                # to the second, and in openssl's own words
                for seconds, beyond in (found.not_after - int(time.time()) + 60, True), (
                        found.not_after - int(time.time()) - 60, False):
                    check = subprocess.run(['openssl', 'x509', '-in', path, '-noout',
                                            '-checkend', str(seconds)], stdout=subprocess.DEVNULL)
                    self.assertEqual(bool(check.returncode), beyond)

    def test_critical_names_and_other_kinds_of_names(self):
        lines = ('subjectAltName=critical,DNS:EXAMPLE.org,IP:192.0.2.1,email:a@example.org,'
                 'DNS:www.example.org',)
        found = acme_tiny.parse_certificate(body(self.certificate('p256', *lines, subject='/')))
        self.assertEqual([name for name in found.names if name[0] != '['],
                         ['example.org', 'www.example.org'])
        self.assertEqual(len(found.names), 4)
        # Without names, and without any extensions (X.509 v1)
        bare = acme_tiny.parse_certificate(body(self.certificate('p256', 'keyUsage=keyCertSign')))
        self.assertEqual(bare.names, [])

    def test_version_1(self):
        """The version field is optional; without it, all others come one place earlier."""
        data = body(self.certificate('p256'))
        (_, fields), *rest = acme_tiny.inside(data)
        items = [item for item in acme_tiny.der(fields) if item[0] not in (0xa0, 0xa3)]
        old = tlv(0x30, tlv(0x30, *(tlv(*i) for i in items)), *(tlv(*i) for i in rest))
        found = acme_tiny.parse_certificate(old)
        self.assertEqual((found.names, found.spki), ([], self.public('p256')))

    def dates(self, start, end):
        """(not before, not after) of a certificate with these points in time (str or number)."""
        found = acme_tiny.parse_certificate(PKI.get('ec', 1).certificate(
            'example.org', self.public('p256'), (start, end)))
        return found.not_before, found.not_after

    def test_dates(self):
        # RFC 5280: two digits mean 1950 to 2049; four digits are for later years.
        for text in ('1951-02-03 04:05:06', '1999-12-31 23:59:59', '2000-02-29 00:00:00',
                     '2049-12-31 23:59:59'):
            when = calendar.timegm(time.strptime(text, '%Y-%m-%d %H:%M:%S'))
            data = time.strftime('%y%m%d%H%M%SZ', time.gmtime(when)).encode()
            self.assertEqual(acme_tiny.der_time(0x17, data), when, text)
        for year in 2049, 2050, 9999:
            when = calendar.timegm((year, 3, 4, 5, 6, 7))
            self.assertEqual(self.dates(1000000000, when), (1000000000, when))

    def test_all_dates(self):
        """The first and the last second of each month, in many years."""
        moment = datetime.datetime(2, 1, 1, tzinfo=datetime.timezone.utc)
        years = {*range(1895, 2110), *range(2, 9999, 100), *range(4, 10000, 100), 9999}
        for year, month in itertools.product(years, range(1, 13)):
            start = moment.replace(year=year, month=month)
            seconds = int(start.timestamp())
            last = start - datetime.timedelta(seconds=1)
            for text, when in (('%04d%02d01000000Z' % (year, month), seconds), (
                    '%04d%02d%02d235959Z' % (last.year, last.month, last.day), seconds - 1)):
                self.assertEqual(acme_tiny.der_time(0x18, text.encode()), when, text)

    def test_dates_that_are_none(self):
        for tag, data in ((0x17, b''), (0x17, b'260230000000Z'), (0x17, b'261323000000Z'),
                          (0x17, b'2611230000Z'), (0x17, b'261123000000+0100'),
                          (0x17, b'26112300000\xb2Z'), (0x18, b'261123000000Z'),
                          (0x18, b'00001123000000Z'), (0x18, b'20261123000000.5Z'),
                          (0x17, b'2611230000:0Z'), (0x18, b'20261123246060Z'),
                          (0x17, b'270229000000Z'), (0x18, b'21000229000000Z'),
                          (0x17, b'260431000000Z'), (0x17, b'260400000000Z'),
                          (0x17, b'260001000000Z'), (0x17, b'260401240000Z'),
                          (0x17, b'260401006000Z'), (0x17, b'260401000060Z'),
                          (0x17, b'2604010000-1Z'), (0x17, b'260401000000z'),
                          (0x18, b'20260401000000Z\n'), (0x18, b' 2026040100000Z')):
            with self.subTest(data), self.assertRaises(ValueError):
                acme_tiny.der_time(tag, data)

    def test_every_truncation(self):
        for key in 'p256', 'rsa2048':
            data = body(self.certificate(key, 'subjectAltName=DNS:example.org'))
            acme_tiny.parse_certificate(data)
            for count in range(len(data)):
                with self.assertRaises(ValueError, msg='%s cut to %d bytes' % (key, count)):
                    acme_tiny.parse_certificate(data[:count])

    def test_every_wrong_byte(self):
        """Whatever a byte turns into: a certificate, or ValueError and nothing else."""
        data = body(self.certificate('p256', 'subjectAltName=critical,DNS:example.org'))
        for place in range(len(data)):
            for value in 0, 1, 0x30, 0x7f, 0x80, 0x84, 0xa3, 0xff:
                try:
                    acme_tiny.parse_certificate(data[:place] + bytes([value]) + data[place + 1:])
                except ValueError:
                    pass

    def test_der(self):
        long = b'x' * 70000
        data = tlv(2, b'\5') + tlv(4, b'y' * 200) + tlv(4, long)
        self.assertEqual(acme_tiny.der(data), [(2, b'\5'), (4, b'y' * 200), (4, long)])
        self.assertEqual(acme_tiny.der(b''), [])
        for tag, size in (2, 0), (4, 127), (4, 128), (4, 255), (4, 256), (0x30, 70000):
            self.assertEqual(acme_tiny.tlv(tag, b'z' * size), tlv(tag, b'z' * size))
        for bad in (b'\x30', b'\x30\1', b'\x30\x82\1', b'\x30\x84\xff\xff\xff\xff',
                    b'\x02\1\1\x02', b'\x30\xff' + b'\xff' * 200):
            with self.subTest(bad[:8]), self.assertRaises(ValueError):
                acme_tiny.der(bad)


class Requests(Openssl):

    def test_names(self):
        for subject, lines, expected in (
                ('/CN=example.org', (), ['example.org']),
                ('/', ('subjectAltName=DNS:example.org,DNS:www.example.org',),
                 ['example.org', 'www.example.org']),
                ('/', ('subjectAltName=critical,DNS:example.org',), ['example.org']),
                ('/CN=example.org', ('subjectAltName=DNS:www.example.org,DNS:example.org',),
                 ['example.org', 'www.example.org']),
                ('/C=CH/O=An example/CN=example.org', ('keyUsage=critical,digitalSignature',
                                                       'subjectAltName=DNS:a.example.org'),
                 ['example.org', 'a.example.org']),
                ('/', ('subjectAltName=IP:192.0.2.1,DNS:example.org,email:a@example.org',),
                 ['example.org']),
                ('/', ('subjectAltName=DNS:Example.ORG',), ['example.org']),
                ('/O=Nobody', (), [])):
            with self.subTest(subject=subject, lines=lines):
                names, spki = acme_tiny.parse_csr(self.request(*lines, subject=subject))
                self.assertEqual(names, expected)
                self.assertEqual(spki, self.public('p256'))

    def test_names_in_a_set_of_several(self):
        """A relative distinguished name may hold more than one attribute."""
        data = openssl('req', '-new', '-key', self.path('p256'), '-multivalue-rdn', '-subj',
                       '/O=Somebody+CN=example.org', '-config', self.config(), '-outform', 'DER')
        self.assertEqual(acme_tiny.parse_csr(data)[0], ['example.org'])

    def test_keys(self):
        for key in KEYS:
            with self.subTest(key):
                data = self.request('subjectAltName=DNS:example.org', key=key)
                self.assertEqual(acme_tiny.parse_csr(data), (['example.org'], self.public(key)))

    def test_every_truncation(self):
        data = self.request('subjectAltName=DNS:example.org', subject='/CN=example.org')
        for count in range(len(data)):
            with self.assertRaisesRegex(ValueError, 'certificate request', msg=str(count)):
                acme_tiny.parse_csr(data[:count])


class AccountKeys(Openssl):
    # RFC 7638 section 3.1
    MODULUS = ('0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L'
               '6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ'
               '5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbIS'
               'D08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-k'
               'EgU8awapJzKnqDKgw')
    THUMBPRINT = 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs'

    def test_thumbprint_of_rfc_7638(self):
        """The RFC gives a public key only: the private numbers of this file are made up, but a
        thumbprint is not made of them."""
        modulus = base64.urlsafe_b64decode(self.MODULUS + '==')
        numbers = [tlv(2, b'\0'), tlv(2, b'\0', modulus), tlv(2, b'\1\0\1')] + [tlv(2, b'\1')] * 6
        path = write(self.path('rfc7638'), fake_ca.pem('RSA PRIVATE KEY', tlv(0x30, *numbers)))
        key = AccountKey(path)
        self.assertEqual(key.jwk, {'kty': 'RSA', 'n': self.MODULUS, 'e': 'AQAB'})
        self.assertEqual((key.alg, key.thumbprint), ('RS256', self.THUMBPRINT))

    def test_elliptic_keys(self):
        for name, alg, size in ('p256', 'ES256', 32), ('p384', 'ES384', 48):
            key, point = AccountKey(self.path(name)), self.public(name)[-2 * size:]
            x, y = (fake_ca.b64(half) for half in (point[:size], point[size:]))
            self.assertEqual(key.alg, alg)
            self.assertEqual(key.jwk, {'kty': 'EC', 'crv': 'P-' + alg[2:], 'x': x, 'y': y})
            text = '{"crv":"P-%s","kty":"EC","x":"%s","y":"%s"}' % (alg[2:], x, y)
            self.assertEqual(key.thumbprint, fake_ca.b64(hashlib.sha256(text.encode()).digest()))

    def test_signatures(self):
        """Verified by openssl. EC signatures are as long as two numbers, also when one is short:
        one in 128 has a zero in front."""
        for name in 'rsa2048', 'p256', 'p384':
            key = AccountKey(self.path(name))
            for data in b'', b'{"a":"b"}.x' * 50:
                signature = key.sign(data)
                with self.subTest(name):
                    self.assertTrue(fake_ca.jws_signature_fits(
                        key.alg, key.jwk, signature, data))
                    self.assertFalse(fake_ca.jws_signature_fits(
                        key.alg, key.jwk, signature, data + b'x'))
        key = AccountKey(self.path('p256'))
        for r, s in (b'\1', b'\2' * 32), (b'\0\xff' + b'\3' * 31, b'\4' * 31):
            with mock.patch('acme_tiny.openssl', return_value=tlv(0x30, tlv(2, r), tlv(2, s))):
                self.assertEqual(key.sign(b''), b''.join(
                    number.lstrip(b'\0').rjust(32, b'\0') for number in (r, s)))

    def test_keys_that_cas_refuse(self):
        openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:1024', '-out',
                self.path('rsa1024'))
        for name in 'rsa1024', 'p521', 'ed25519':
            with self.subTest(name), self.assertRaisesRegex(AcmeError, '2048 bits or more'):
                AccountKey(self.path(name))

    def test_the_private_half_stays_in_its_file(self):
        calls = []
        real = subprocess.run

        def watch(command, **options):
            calls.append((command, options.get('input'), options.get('env')))
            return real(command, **options)

        with mock.patch('subprocess.run', watch):
            AccountKey(self.path('p256')).sign(b'data')
        (command, given, env), = calls
        private = dict(acme_tiny.inside(acme_tiny.inside(body(read(self.path('p256'))))[2][1]))[4]
        for secret in private, private.hex().encode(), base64.b64encode(private)[:-4]:
            self.assertNotIn(secret, ' '.join(command).encode() + given + repr(env).encode())


class Chains(unittest.TestCase):
    """check_chain(): what comes from the CA is installed as it is, or refused."""
    NOW = 1800000000

    @classmethod
    def setUpClass(cls):
        cls.pki = PKI.get('ec', 2)
        cls.spki = openssl('pkey', '-in', os.path.join(Openssl.folder, 'p256'), '-pubout',
                           '-outform', 'DER')
        cls.names = ['example.org', 'www.example.org']

    def leaf(self, names=None, spki=None, start=-3600, end=86400):
        names = self.names if names is None else names
        return self.pki.certificate('', spki or self.spki, (self.NOW + start, self.NOW + end), [
            tlv(0x82, name.encode()) for name in names])

    def chain(self, *ders, **options):
        """The PEM text of these certificates, by default of a leaf and its issuers."""
        ders = ders or [self.leaf(**options)] + self.pki.intermediates
        return ''.join(fake_ca.pem('CERTIFICATE', data) for data in ders)

    def check(self, text, names=None):
        return acme_tiny.check_chain(text, self.spki, names or self.names, self.NOW)

    def refused(self, text, words, **options):
        with self.assertRaisesRegex(AcmeError, words):
            self.check(text, **options)

    def test_a_good_one_comes_out_as_it_is(self):
        text = self.chain()
        self.assertEqual(text.count('BEGIN'), 3)
        self.assertEqual(self.check(text), text)
        with tempfile.TemporaryDirectory() as folder:
            path = write(os.path.join(folder, 'chain'), self.check(text))
            openssl('x509', '-in', path, '-noout')
        alone = self.chain(self.leaf())
        self.assertEqual(self.check(alone), alone)
        self.assertEqual(self.check(text, names=['WWW.example.org', 'Example.org']), text)

    def test_written_anew(self):
        text = self.chain()
        for other in (text.replace('\n', '\r\n'), 'Some text\n' + text + '\nmore\n',
                      text.replace('-----END', '\n\n-----END'), text.replace('\n', '\n\n'),
                      text.replace('-----\n-----', '-----\n subject=/CN=x\n-----'),
                      text.replace('\n', ' \t\n'), '\ufeff' + text):
            self.assertEqual(self.check(other), text)

    def test_planted_blocks(self):
        text = self.chain()
        for label in 'PRIVATE KEY', 'RSA PRIVATE KEY', 'EC PARAMETERS', 'PUBLIC KEY':
            planted = fake_ca.pem(label, b'not yours')
            for other in (text + planted, planted + text,
                          text.replace('-----END CERTIFICATE-----\n',
                                       '-----END CERTIFICATE-----\n' + planted, 1)):
                with self.subTest(label):
                    self.refused(other, 'no certificate|no chain')
        # In the place of certificates, or half of one
        self.refused(fake_ca.pem('PRIVATE KEY', self.leaf()), 'no certificate')
        self.refused(text + '-----BEGIN PRIVATE KEY-----\nMC4=\n', 'no chain')
        self.refused(text + '-----BEGIN private key-----\nMC4=\n-----END private key-----\n',
                     'no chain')

    def test_no_chain_at_all(self):
        text = self.chain()
        for other in ('', 'nonsense', '<html></html>', text[:-30], text[:100],
                      text.replace('M', '!', 1), fake_ca.pem('CERTIFICATE', b''),
                      fake_ca.pem('CERTIFICATE', b'nonsense'), text + '-----BEGIN',
                      text + fake_ca.pem('CERTIFICATE', self.leaf()[:-1]),
                      text.replace('END CERTIFICATE', 'END X509 CRL', 1)):
            with self.subTest(other[:40]):
                self.refused(other, 'no chain of certificates')

    def test_another_key(self):
        other = self.pki.issuer[2]
        self.refused(self.chain(spki=other), 'another key')
        self.refused(self.chain(*self.pki.intermediates), 'another key')    # no leaf
        # The same point on a curve, called something else
        bits = acme_tiny.inside(self.spki)[1]
        changed = tlv(0x30, tlv(0x30, tlv(6, acme_tiny.EC), tlv(6, b'\x2b')), tlv(*bits))
        self.refused(self.chain(spki=changed), 'another key')

    def test_other_names(self):
        for names in (['example.org'], self.names + ['evil.example.net'], [],
                      ['example.org', 'www.example.net'], ['example.org', '*.example.org']):
            with self.subTest(names):
                self.refused(self.chain(names=names), 'other names')
        strange = self.pki.certificate('', self.spki, (self.NOW - 9, self.NOW + 9), [
            tlv(0x82, b'example.org'), tlv(0x82, b'www.example.org'), tlv(0x87, b'\x7f\0\0\1')])
        self.refused(self.chain(strange), 'other names')
        try:
            self.check(self.chain(names=['\x1b[2J\x07.example.org']))
        except AcmeError as error:
            self.assertTrue(str(error).isprintable(), ascii(str(error)))

    def test_another_time(self):
        self.refused(self.chain(end=0), 'is not valid now')
        self.refused(self.chain(start=2 * 3600), 'is not valid now.*clock')
        self.check(self.chain(end=1))
        self.check(self.chain(start=3500))      # clocks differ a little

    def test_order_of_the_chain(self):
        leaf, (inner, outer) = self.leaf(), self.pki.intermediates
        self.check(self.chain(leaf, inner, outer, self.pki.root))
        for ders in (leaf, outer, inner), (leaf, self.pki.root, inner), (leaf, inner, inner):
            self.refused(self.chain(*ders), 'did not issue')
        self.refused(self.chain(inner, leaf), 'another key')
        self.refused(self.chain(leaf, leaf), 'did not issue')


def headers(**values):
    message = email.message.Message()
    for name, value in values.items():
        message[name.replace('_', '-')] = value
    return message


class Texts(unittest.TestCase):

    def test_retry_after(self):
        for value, expected in (('0', 0), ('1', 1), ('120', 120), (' 30 ', 30),
                                ('999999999999', 999999999999), (None, None), ('', None),
                                ('-1', None), ('1.5', None), ('+5', None), ('5 s', None),
                                ('0x10', None), ('\u0661', None), ('\xb2', None), ('1e3', None),
                                ('9' * 5000, int('9' * 4000)), ('soon', None), ('Mon', None),
                                (' ', None)):
            with self.subTest(value):
                found = acme_tiny.retry_after(headers(**{} if value is None else
                                                      {'Retry_After': value}))
                self.assertEqual(found, expected)

    def test_retry_after_as_a_date(self):
        at = email.utils.formatdate(time.time() + 600, usegmt=True)
        self.assertLess(abs(acme_tiny.retry_after(headers(Retry_After=at)) - 600), 5)
        # By the server's clock, if it shows one: ours may be wrong
        shown = email.utils.formatdate(time.time() - 86400, usegmt=True)
        self.assertLess(abs(acme_tiny.retry_after(headers(Retry_After=at, Date=shown))
                            - 600 - 86400), 5)
        past = email.utils.formatdate(time.time() - 600, usegmt=True)
        self.assertEqual(acme_tiny.retry_after(headers(Retry_After=past)), 0)
        # The two older forms of RFC 9110 section 5.6.7
        for form in '%A, %d-%b-%y %H:%M:%S GMT', '%a %b %d %H:%M:%S %Y':
            at = time.strftime(form, time.gmtime(time.time() + 600))
            self.assertLess(abs(acme_tiny.retry_after(headers(Retry_After=at)) - 600), 5, at)

    def test_http_date(self):
        self.assertEqual(acme_tiny.http_date('Sun, 06 Nov 1994 08:49:37 GMT'), 784111777)
        for text in (None, '', ' ', 'x', '\0', 'Sun, 06 Nov', 'Sun, 32 Nov 1994 08:49:37 GMT',
                     'Sun, 06 Nov 99999 08:49:37 GMT', '0' * 1000, 'Sun, 06 Nov -1 1:1:1 GMT',
                     'Sun, 06 Nov 1994 08:49:37 +99999999999999999999'):
            with self.subTest(text):
                self.assertIn(type(acme_tiny.http_date(text)), (type(None), int))

    def test_printable(self):
        for text in ('\x1b[2J\x1b]0;title\x07', 'a\rb\nc\td', '\x9b31m', 'left \u202e right',
                     '\u2066\u2069\u200f', 'half \ud800', '\0', '\u2028\u2029', '\x7f', b'\xff',
                     None, {'a': '\x1b'}, '\U000e0041'):
            with self.subTest(ascii(text)):
                shown = acme_tiny.printable(text)
                self.assertTrue(shown.isprintable(), ascii(shown))
                shown.encode('utf-8')
        self.assertEqual(acme_tiny.printable('\x1b[2J'), r'\x1b[2J')
        self.assertEqual(acme_tiny.printable('B\u00fccher'), 'B\u00fccher')
        self.assertEqual(acme_tiny.printable('x' * 500), 'x' * 500)
        for text in 'x' * 501, '\u202e' * 300, 'x' * 10 ** 7:
            self.assertLessEqual(len(acme_tiny.printable(text)), 503)
            self.assertTrue(acme_tiny.printable(text).endswith('...') or len(text) < 501)

    def test_utc(self):
        self.assertEqual(acme_tiny.utc(0), '1970-01-01 00:00 UTC')
        for seconds in -1, 1e12, 1e300, -1e300, 253402300800:
            self.assertRegex(acme_tiny.utc(seconds), '^[0-9]+-[0-9-]{5} [0-9:]{5} UTC$')

    def test_parse_json(self):
        good = Reply(200, {}, '{"a": "b", "c": [], "d": null, "\u00fc": 1}'.encode())
        self.assertEqual(acme_tiny.parse_json(good, a=str, c=list)['\u00fc'], 1)
        for text, kinds in (
                (b'', {}), (b'[]', {}), (b'"a"', {}), (b'null', {}), (b'1', {}), (b'{', {}),
                (b'{"a": 1}', {'a': str}), (b'{"a": null}', {'a': str}), (b'{}', {'a': str}),
                (b'{"a": {}}', {'a': list}), (b'\xff\xfe{}', {}), (b'{"a": "b"} x', {}),
                (b'{"a": true}', {'a': str}), (b'[' * 100000, {}), (b'{"a":' * 100000, {}),
                (b'{"a": ' + b'9' * 10000 + b'}', {'a': str}), (b'["a"]', {'a': str})):
            with self.subTest(text[:20]):
                with self.assertRaises(AcmeError) as caught:
                    acme_tiny.parse_json(Reply(200, {}, text), **kinds)
                self.assertTrue(str(caught.exception).isprintable())
                self.assertLess(len(str(caught.exception)), 700)

    def test_problem_text(self):
        problem = {
            'type': 'urn:ietf:params:acme:error:malformed', 'detail': 'Some names are wrong',
            'subproblems': [{'type': 'urn:x:caa', 'detail': 'CAA forbids', 'identifier': {
                'type': 'dns', 'value': 'www.example.org'}}],
            'instance': 'https://example.org/docs'}
        text = acme_tiny.problem_text(problem)
        for words in 'malformed', 'Some names', 'urn:x:caa', 'CAA forbids', 'www.example.org', \
                'https://example.org/docs':
            self.assertIn(words, text)
        for value in (None, [], 'text', 1, {}, {'detail': None}, {'type': 1, 'detail': []},
                      {'subproblems': 1}, {'subproblems': [1, None, {}, {'identifier': 'x'}]},
                      {'detail': {'\x1b': '\x1b'}}, {'detail': '\ud800'}, float('nan')):
            with self.subTest(value):
                text = acme_tiny.problem_text(value)
                self.assertTrue(text and text.isprintable(), ascii(text))

    def test_problems_at_any_depth(self):
        """Nesting that JSON's reader just bears may be too much for what shows it."""
        def parsed(depth):
            text = '{"detail":%s0%s}' % (shape[0] * depth, shape[1] * depth)
            try:
                return acme_tiny.parse_json(Reply(400, {}, text.encode()))
            except AcmeError:
                return None

        for shape in ('[', ']'), ('{"a":[', ']}'), ('{"a":', '}'):
            low, high = 1, 1000000      # the deepest that can be read is low, in the end
            self.assertIsNone(parsed(high))
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if parsed(middle) else (low, middle)
            for depth in set(range(1, low, low // 50 + 1)) | set(range(max(1, low - 60), low + 1)):
                with self.subTest(shape, depth=depth):
                    self.assertLess(len(acme_tiny.problem_text(parsed(depth))), 2100)


class Files(unittest.TestCase):
    """Challenge files."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        self.addCleanup(os.umask, os.umask(0o077))

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def test_written_noted_and_removed(self):
        noted = []
        solver = acme_tiny.HttpFiles(self.folder, note=lambda paths: noted.append(
            (list(paths), os.listdir(self.folder))))
        solver.present([('a.example.org', 'one', 'one.x'), ('b.example.org', 'two', 'two.x')])
        # noted before they were there: a program killed now still cleans up next time
        self.assertEqual(noted, [([self.path('one'), self.path('two')], [])])
        self.assertEqual(read(self.path('one')), 'one.x')
        self.assertEqual(os.stat(self.path('two')).st_mode & 0o777, 0o644)
        solver.remove()
        self.assertEqual((os.listdir(self.folder), solver.paths), ([], []))
        solver.remove()

    def test_links_are_not_followed(self):
        """The web server's user may write here, but not lead us elsewhere."""
        victim = write(self.path('victim'), 'precious')
        os.symlink(victim, self.path('token'))
        os.symlink(self.path('nowhere'), self.path('dangling'))
        solver = acme_tiny.HttpFiles(self.folder)
        solver.present([('example.org', 'token', 'text'), ('example.net', 'dangling', 'text')])
        self.assertEqual(read(victim), 'precious')
        self.assertEqual(read(self.path('token')), 'text')
        self.assertFalse(os.path.islink(self.path('token')))
        self.assertFalse(os.path.lexists(self.path('nowhere')))
        solver.remove()
        self.assertEqual(os.listdir(self.folder), ['victim'])

    def test_a_link_that_comes_back(self):
        """Planted anew just after the old one was removed."""
        victim, real = write(self.path('victim'), 'precious'), os.unlink

        def unlink(path):
            real(path)
            os.symlink(victim, path)

        os.symlink(victim, self.path('token'))
        with mock.patch('os.unlink', unlink), self.assertRaises(ToolError):
            acme_tiny.HttpFiles(self.folder).present([('example.org', 'token', 'text')])
        self.assertEqual(read(victim), 'precious')

    def test_folder_that_is_gone(self):
        solver = acme_tiny.HttpFiles(self.path('gone'))
        with self.assertRaisesRegex(ToolError, 'gone'):
            solver.present([('example.org', 'token', 'text')])
        solver.remove()

    def test_a_file_that_cannot_be_removed_is_told(self):
        told = []
        solver = acme_tiny.HttpFiles(self.folder, trouble=told.append)
        solver.present([('example.org', 'token', 'text'), ('example.org', 'other', 'text')])
        os.unlink(self.path('token'))
        os.mkdir(self.path('token'))
        solver.remove()
        self.assertEqual(len(told), 1)
        self.assertIn(self.path('token'), told[0])
        self.assertEqual(os.listdir(self.folder), ['token'])


class Tools(unittest.TestCase):

    def test_openssl(self):
        self.assertEqual(acme_tiny.openssl('dgst', '-sha256', '-binary', stdin=b'x'),
                         hashlib.sha256(b'x').digest())
        with self.assertRaises(ToolError) as caught:
            acme_tiny.openssl('x509', stdin=b'nonsense')
        self.assertIsInstance(caught.exception, IOError)
        self.assertIn('certificate', str(caught.exception))
        self.assertTrue(str(caught.exception).isprintable())

    def test_no_openssl(self):
        with mock.patch.dict(os.environ, PATH='/nowhere'):
            with self.assertRaisesRegex(ToolError, 'openssl'):
                acme_tiny.openssl('version')

    def test_json_of_a_signed_request(self):
        """RFC 8555 section 6.2: base64url without padding, whatever is in it."""
        for size in range(6):
            data = b'\xff\xfe' * size
            self.assertEqual(acme_tiny.b64(data), fake_ca.b64(data))
        self.assertNotIn('=', acme_tiny.b64(json.dumps({'a': 1}).encode()))

    def test_pem(self):
        text = fake_ca.pem('CERTIFICATE', b'x' * 100) + fake_ca.pem('PRIVATE KEY', b'y')
        self.assertEqual(acme_tiny.pem(text), [('CERTIFICATE', b'x' * 100), ('PRIVATE KEY', b'y')])
        start = time.process_time()
        for bad in ('-----BEGIN A-----' * 50000, '-----BEGIN ' + 'A' * 900000,
                    '-----BEGIN A-----' + 'A' * 900000, '-' * 900000,
                    '-----BEGIN A-----' + ' ' * 900000 + '-----END B-----'):
            with self.assertRaises(ValueError):
                acme_tiny.pem(bad)
        self.assertLess(time.process_time() - start, 5)

    def test_bounded_answers(self):
        """An answer of a byte too many is refused, and so is one that was cut."""
        class Opener:
            def open(self, request):
                return self.answer

        client = acme_tiny.Client('https://example.org/directory')
        client.opener = Opener()
        limit = acme_tiny.ANSWER_BYTES
        for size, missing in (limit, 0), (limit + 1, 0), (10, 1):
            client.opener.answer = io.BytesIO(b' ' * size)
            client.opener.answer.status, client.opener.answer.headers = 200, headers()
            client.opener.answer.length = missing
            if size == limit:
                self.assertEqual(len(client.fetch('asking', client.url).body), limit)
            else:
                with self.assertRaisesRegex(AcmeError, 'cut short'):
                    client.fetch('asking', client.url)


if __name__ == '__main__':
    unittest.main()
