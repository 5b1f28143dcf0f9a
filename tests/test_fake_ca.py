"""The test CA itself: a client that shares no code with it gets real certificates from it, and is
refused or ill-treated where it should be."""
import base64
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import tempfile
import time
import unittest

from tests.fake_ca import FakeCA
from tests.support import Web, cert_dates, cert_names, openssl, pair_matches, spki, wait_for


def b64(data):
    return base64.urlsafe_b64encode(data).decode().rstrip('=')


class Client:
    """Just enough of an ACME client; `key` is 'RS256', 'ES256' or 'ES384'."""
    KEYS = {'RS256': ('RSA', 'rsa_keygen_bits:2048'), 'ES256': ('EC', 'ec_paramgen_curve:P-256'),
            'ES384': ('EC', 'ec_paramgen_curve:P-384')}

    def __init__(self, ca, folder, key='ES256'):
        self.ca, self.alg, self.kid, self.nonce = ca, key, None, None
        self.folder, self.key = folder, os.path.join(folder, 'account-%s.key' % key)
        if not os.path.exists(self.key):
            make_key(self.key, key)
        if key == 'RS256':
            modulus = openssl('rsa', '-in', self.key, '-noout', '-modulus').decode().strip()
            self.jwk = {'e': 'AQAB', 'kty': 'RSA', 'n': b64(bytes.fromhex(modulus.split('=')[1]))}
        else:
            size = int(key[2:]) // 8
            point = openssl('pkey', '-in', self.key, '-pubout', '-outform', 'DER')[-2 * size:]
            self.jwk = {'crv': 'P-' + key[2:], 'kty': 'EC', 'x': b64(point[:size]),
                        'y': b64(point[size:])}
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(',', ':')).encode()
        self.thumbprint = b64(hashlib.sha256(canonical).digest())
        self.connection = http.client.HTTPSConnection(
            '127.0.0.1', ca.server.server_port, timeout=10,
            context=ssl.create_default_context(cafile=ca.bundle))

    def request(self, method, url, body=None, **headers):
        """(status, headers, body) of one request."""
        headers = dict({'User-Agent': 'test', 'Content-Type': 'application/jose+json'}, **headers)
        self.connection.request(method, url.replace(self.ca.url, ''), body, headers)
        answer = self.connection.getresponse()
        body = answer.read()
        self.nonce = answer.headers.get('Replay-Nonce')
        return answer.status, answer.headers, body

    def post(self, url, payload, tamper=None, **protected):
        """(status, headers, parsed JSON or text) of a signed request."""
        if not self.nonce:
            self.request('HEAD', self.ca.url + '/new-nonce')
        protected = dict({'alg': self.alg, 'nonce': self.nonce, 'url': url}, **protected)
        if 'jwk' not in protected:
            protected.update({'kid': self.kid} if self.kid else {'jwk': self.jwk})
        jws = {'protected': b64(json.dumps(protected).encode()),
               'payload': '' if payload == '' else b64(json.dumps(payload).encode())}
        signature = self.sign((jws['protected'] + '.' + jws['payload']).encode())
        jws['signature'] = b64(tamper(signature) if tamper else signature)
        status, headers, body = self.request('POST', url, json.dumps(jws))
        return status, headers, json.loads(body) if 'json' in headers['Content-Type'] else body

    def sign(self, data):
        data = subprocess.run(['openssl', 'dgst', '-sha' + self.alg[2:], '-sign', self.key],
                              input=data, stdout=subprocess.PIPE, check=True).stdout
        if self.alg == 'RS256':
            return data
        size, numbers, data = int(self.alg[2:]) // 8, b'', data[2:]
        while data:
            number = int.from_bytes(data[2:2 + data[1]], 'big')
            numbers, data = numbers + number.to_bytes(size, 'big'), data[2 + data[1]:]
        return numbers

    def register(self, **payload):
        payload = dict({'termsOfServiceAgreed': True}, **payload)
        status, headers, _ = self.post(self.ca.url + '/new-account', payload)
        self.kid = headers['Location']
        return status

    def order(self, *names):
        """(URL, order) of a new order for which all challenges are answered."""
        _, headers, order = self.post(self.ca.url + '/new-order', {
            'identifiers': [{'type': 'dns', 'value': name} for name in names]})
        for url in order['authorizations']:
            _, _, authz = self.post(url, '')
            if authz['status'] == 'pending':
                challenge, = [c for c in authz['challenges'] if c['type'] == 'http-01']
                with open(os.path.join(self.folder, challenge['token']), 'w') as file:
                    file.write(challenge['token'] + '.' + self.thumbprint)
                self.post(challenge['url'], {})
        return headers['Location'], self.poll(headers['Location'], 'ready', 'invalid')

    def poll(self, url, *states):
        return wait_for(lambda: next((found for found in [self.post(url, '')[2]]
                                      if found['status'] in states), None), 5, 'status')

    def certificate(self, *names, key='leaf.key'):
        """Path of the chain obtained for `names`."""
        url, order = self.order(*names)
        self.finalize(order, names, key)
        order = self.poll(url, 'valid')
        status, headers, chain = self.post(order['certificate'], '')
        path = os.path.join(self.folder, 'chain.pem')
        with open(path, 'wb') as file:
            file.write(chain)
        return path

    def finalize(self, order, names, key='leaf.key', harm=None):
        """The answer to finalize with a CSR for `names`, DER changed by `harm`."""
        config = os.path.join(self.folder, 'csr.conf')
        with open(config, 'w') as file:
            file.write('[req]\ndistinguished_name=dn\nreq_extensions=ext\n[dn]\n[ext]\n'
                       'subjectAltName=' + ','.join('DNS:' + name for name in names))
        csr = openssl('req', '-new', '-subj', '/', '-config', config, '-outform', 'DER',
                      '-key', os.path.join(self.folder, key))
        return self.post(order['finalize'], {'csr': b64(harm(csr) if harm else csr)})


def make_key(path, kind):
    algorithm, option = Client.KEYS[kind]
    openssl('genpkey', '-algorithm', algorithm, '-pkeyopt', option, '-out', path)


class FakeCATest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.web = Web(self.folder)
        self.web.__enter__()
        self.addCleanup(self.web.__exit__)
        make_key(self.path('leaf.key'), 'ES256')

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, key='ES256', register=True, **options):
        """A new CA and a client of it."""
        ca = FakeCA(http_port=self.web.port, **options).start()
        self.addCleanup(ca.stop)
        client = Client(ca, self.folder, key)
        self.addCleanup(client.connection.close)
        if register:
            client.register()
        return ca, client

    def assert_problem(self, answer, status, type):
        self.assertEqual((answer[0], answer[2]['type'].split(':')[-1]), (status, type))


class Issuing(FakeCATest):

    def check_chain(self, ca, chain, names):
        openssl('verify', '-x509_strict', '-CAfile', ca.bundle, '-untrusted', chain,
                '-verify_hostname', names[0], chain)
        self.assertTrue(pair_matches(self.path('leaf.key'), chain))
        self.assertEqual(cert_names(chain), list(names))

    def test_certificates(self):
        names = 'example.org', 'www.example.org'
        for alg, ca_key, length in ('ES256', 'ec', 2), ('ES384', 'ec', 0), ('RS256', 'rsa', 1):
            with self.subTest(alg=alg, ca_key=ca_key):
                ca, client = self.start(alg, ca_key=ca_key, chain_length=length)
                chain = client.certificate(*names)
                self.check_chain(ca, chain, names)
                self.assertEqual(ca.issued[0].spki, spki(self.path('leaf.key')))
                start, end = cert_dates(chain)
                self.assertEqual(end - start, ca.validity)
                self.assertLess(abs(start + ca.backdate - time.time()), 10)
                self.assertEqual(ca.connections, 1)
        self.assertEqual([host for host, _ in self.web.hits], list(names) * 3)

    def test_short_life_and_another_clock(self):
        ca, client = self.start(validity=100, backdate=7)
        ca.clock_offset = 40 * 365 * 86400
        start, end = cert_dates(client.certificate('example.org'))
        self.assertEqual(end - start, 100)
        self.assertLess(abs(start + 7 - ca.now()), 10)


if __name__ == '__main__':
    unittest.main()
