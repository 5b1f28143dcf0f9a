"""What the field found about DANE: DNS that another tool rewrites, zones that lag, services on
several machines, keys that were published before the program came."""
import os
import re
import shutil
import unittest

from tests.world.case import new_key
from tests.world.dane import BASE, HOST, LATE, MX, NAME, OTHER, Case, Service, World, tlsa_line
from tests.world.line import CERTCHANGE, DAY, HOUR, KEYCHANGE
from tests.world.support import openssl, spki

setUpModule, tearDownModule = World.start, World.stop

FAR = 'tlsa.example.net'


def of_both(name=NAME, ttl=60):
    return tlsa_line(World.old, ttl, name) + tlsa_line(World.new, ttl, name)


class Told(Case):
    """`tlsa` tells what DNS must hold now, not what it will hold."""

    def told(self, line, **options):
        return set(re.findall('3 1 1 ([0-9a-f]{64})', line.run('tlsa', **options).stdout))

    def test_the_old_key_as_long_as_services_use_it(self):
        line = self.line()
        line.hook(CERTCHANGE, 'exit 1')
        line.cron(2 * HOUR, check=1)
        self.assertTrue(line.swapped())
        self.assertEqual(self.told(line, after=3 * HOUR), {World.old, World.new})
        line.run('tlsa', '--check', after=3 * HOUR, check=0)
        line.hook(CERTCHANGE)
        line.cron(4 * HOUR, check=0)
        self.assertEqual(self.told(line, after=4 * HOUR), {World.new})

    def test_the_old_key_as_long_as_it_is_not_known_to_be_out_of_use(self):
        """By hand, without -k, nothing is told to the services."""
        line = self.line()
        line.run('cron', after=2 * HOUR, check=0)
        self.assertTrue(line.swapped())
        self.assertEqual(self.told(line, after=3 * HOUR), {World.old, World.new})

    def test_where_the_records_are(self):
        """None can be at a name that is an alias."""
        line = self.line()
        line.write('zone', '%s 60 CNAME %s\n' % (NAME, FAR) + of_both(FAR))
        done = line.run('tlsa', check=0)
        self.assertEqual({row.split()[0] for row in done.stdout.splitlines()}, {FAR + '.'})

    def test_the_end_of_an_alias_may_be_named(self):
        line = self.line(tlsa='_dane.example.org')
        self.assertIn('_dane.example.org. 3600 IN TLSA 3 1 1', line.run('tlsa', check=0).stdout)

    def test_a_record_that_the_next_renewal_breaks(self):
        line = self.line('settled')
        der = openssl('x509', '-in', line.crt(), '-outform', 'DER')
        for record in ('3 0 1 %s' % openssl('dgst', '-sha256', '-r', stdin=der).decode()[:64],
                       '3 0 0 %s' % der.hex()):
            line.write('zone', tlsa_line(World.old) + '%s 60 TLSA %s\n' % (NAME, record))
            done = line.run('tlsa', '--check', check=1)
            self.assertIn(record[:5], done.stdout)
            self.assertIn('renewal', done.stdout)

    def test_what_only_a_cache_holds_is_not_stale(self):
        line = self.line('settled')
        old = BASE + MX + tlsa_line(World.old) + tlsa_line('ab' * 32)
        self.resolver.records = old
        line.run('tlsa', '--check', check=0)
        self.own.records = old
        self.assertIn('ab' * 32, line.run('tlsa', '--check', check=1).stdout)


class Added(Case):
    """What is new while a key is staged has a time of its own."""

    def test_a_name(self):
        line = self.line()
        line.write('zone', of_both() + of_both(OTHER))
        line.write('zone.last', tlsa_line(World.new) + tlsa_line(World.new, name=OTHER))
        line.set(tlsa=[NAME, OTHER])
        line.cron(1800, check=0)
        line.cron(2 * HOUR - 1800 - 100, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 2 * HOUR)

    def test_a_server(self):
        line = self.line()
        second = self.dns(self.zone, False, True)
        line.set(dns_servers=[self.own.address, second.address])
        line.cron(1800, check=0)
        line.cron(2 * HOUR - 1800 - 100, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 2 * HOUR)

    def test_another_of_the_same(self):
        """They know it, for they have the whole zone; but not since when."""
        line = self.line()
        other = self.dns(self.zone, False, True)
        line.set(dns_servers=other.address)
        line.cron(HOUR - 300, check=0)
        line.cron(HOUR + 300, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 2 * HOUR)


class OnTheWay(Case):
    """Clients go through all zones from a name to its records."""

    def setUp(self):
        super().setUp()
        self.second, self.far = [self.dns(self.zone, False, True) for _ in range(2)]
        self.ports = {'127.0.0.11': self.own.port, '127.0.0.12': self.second.port,
                      '127.0.0.13': self.far.port}

    def check(self, alias, late, records):
        """One of two servers has the alias `late`, whose records have the old key only."""
        line = self.line(dns_servers=None)
        for name in 'zone', 'zone.both', 'zone.last':
            line.write(name, alias + records)
        self.second.records = lambda: BASE + late + records
        self.assert_waits(line, '127.0.0.12|old.example.net', ports=self.ports)
        line.cron(LATE + 5 * HOUR, ports=self.ports)
        self.assertFalse(line.swapped())
        # All the rest was right for long; but caches have the alias of before
        self.second.records = self.zone
        line.cron(LATE + 6 * HOUR, ports=self.ports, check=0)
        line.cron(LATE + 7 * HOUR - 60, ports=self.ports, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, LATE + 7 * HOUR + 120, ports=self.ports)

    def test_an_alias_that_one_server_has_not_changed(self):
        self.check('%s 60 CNAME %s\n' % (NAME, FAR), MX + '%s 60 CNAME old.example.net\n' % NAME,
                   of_both(FAR) + tlsa_line(World.old, name='old.example.net'))

    def test_an_alias_of_the_host_that_one_server_has_not_changed(self):
        self.host = HOST + ' 60 CNAME mail.example.net\n'
        old = HOST + ' 60 CNAME old.example.net\nold.example.net 60 A 192.0.2.4\n'
        self.check('', old, of_both('_25._tcp.mail.example.net')
                   + tlsa_line(World.old, name='_25._tcp.old.example.net'))

    def test_the_time_to_live_of_an_alias(self):
        line = self.line(dns_servers=None, staging_hours=.001)
        line.write('zone', '%s 5000 CNAME %s\n' % (NAME, FAR) + of_both(FAR))
        line.cron(60, ports=self.ports, check=0)
        line.cron(9900, ports=self.ports, check=0)
        self.assertFalse(line.swapped())
        self.assert_goes_on(line, 10200, ports=self.ports)


class Machines(Case):
    """Services are what clients meet, at all addresses and by all names."""

    def line(self, **options):
        """A line that has gone live, with services that shall be seen before the old key leaves
        DNS: these options are those of Service; its own copies are in 'new' and 'old'."""
        line = super().line()
        for folder in 'new', 'old':
            os.mkdir(line.path(folder))
        for ext in 'key', 'crt':
            shutil.copy(getattr(line, ext)(), line.path('old', 'service.' + ext))
            shutil.copy(getattr(line, ext)('staging'), line.path('new', 'service.' + ext))
        return line

    def kept(self, line, done, *words):
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual((done.returncode, line.digests()), (1, {World.old, World.new}), done.all)
        for word in words:
            self.assertRegex(done.stderr, word)

    def gone(self, line, done):
        self.assertTrue(line.swapped(), done.all)
        self.assertEqual((done.returncode, line.digests()), (0, {World.new}), done.all)

    def test_every_address_of_a_host(self):
        line = self.line()
        first = self.enter(Service(line.path('new')))
        second = self.enter(Service(line.path('old'), address='127.0.0.2', port=first.port))
        line.set(served='mx.example.org:%d' % first.port)
        hosts = {HOST: ['127.0.0.1', '127.0.0.2']}
        done = line.cron(2 * HOUR, pace=.02, hosts=hosts)
        self.kept(line, done, r'127\.0\.0\.2.*another key')
        self.assertNotIn('127.0.0.1)', done.stderr)
        second.folder = line.path('new')
        self.gone(line, line.cron(3 * HOUR, pace=.02, hosts=hosts))

    def test_by_the_name_that_clients_ask_for(self):
        line = self.line()
        service = self.enter(Service(line.path('new'), names={HOST: line.path('old')}))
        line.set(served='mx.example.org:%d' % service.port)
        hosts = {HOST: ['127.0.0.1'], 'www.example.org': ['127.0.0.1']}
        self.kept(line, line.cron(2 * HOUR, pace=.02, hosts=hosts), 'another key')
        line.set(served='www.example.org@mx.example.org:%d' % service.port)
        self.gone(line, line.cron(3 * HOUR, pace=.02, hosts=hosts))

    def test_one_with_keys_of_two_kinds(self):
        """It is judged by the one that is of this line's kind, whatever else clients may prefer."""
        line = super().line('settled', key_type='rsa', key_length=2048)
        for folder in 'new', 'other':
            os.mkdir(line.path(folder))
        new_key(line.path('other', 'service.key'))
        openssl('req', '-x509', '-new', '-key', line.path('other', 'service.key'), '-subj',
                '/CN=example.org', '-out', line.path('other', 'service.crt'))
        line.run('renew', '--new-key', hooks=True, check=0)
        for ext in 'key', 'crt':
            shutil.copy(getattr(line, ext)('staging'), line.path('new', 'service.' + ext))
        service = self.enter(Service(line.path('other'), others=[line.path('new')]))
        line.set(served='127.0.0.1:%d' % service.port)
        done = line.cron(2 * HOUR, pace=.02, check=0)
        self.assertEqual(line.digests(), {spki(line.key())}, done.all)

    def test_domain_and_host_of_xmpp(self):
        line = self.line()
        service = self.enter(Service(line.path('new'), 'xmpp'))
        line.set(served='example.org@127.0.0.1:%d/xmpp-server' % service.port)
        self.gone(line, line.cron(2 * HOUR, pace=.02))
        self.assertRegex(service.greeted[-1].decode(), "to=['\"]example.org['\"]")

    def test_one_that_demands_a_certificate_and_greets_slowly(self):
        line = self.line()
        service = self.enter(Service(line.path('new'), 'smtp', slow=3, certificate=True))
        line.set(served='127.0.0.1:%d/smtp' % service.port)
        self.gone(line, line.cron(2 * HOUR, pace=.02))
        greeted = next(words for words in service.greeted if words.startswith(b'EHLO'))
        self.assertNotIn(b'EXAMPLE.COM', greeted)

    def test_init_with_a_state_that_is_lost(self):
        """Nothing tells that the services left the old key: it stays in DNS until they are seen."""
        line = self.line()
        service = self.enter(Service(line.path('old')))
        line.set(served='127.0.0.1:%d' % service.port)
        self.kept(line, line.cron(2 * HOUR, pace=.02))
        line.lose_state()
        self.kept(line, line.run('init', hooks=True, after=3 * HOUR, pace=.02), 'another key')
        service.folder = line.path('new')
        self.gone(line, line.run('init', hooks=True, after=4 * HOUR, pace=.02))


class Vanished(Case):
    def test_while_nothing_is_staged(self):
        """It is looked at once a day; the hook puts back what another tool took away."""
        line = self.line('settled')
        line.write('zone', '')
        done = line.cron(DAY, check=0)
        self.assertEqual(line.log(), [KEYCHANGE], done.all)
        self.assertEqual(line.digests(), {World.old})

    def test_what_the_hook_cannot_put_back(self):
        """It is said once a day, by `status` too, until that is mended."""
        line = self.line('settled')
        line.write('lie')
        for zone, word in (('', 'no TLSA record'), (tlsa_line('ab' * 32), "for 'live'")):
            line.write('zone', zone)
            for days in 1, 2:
                line.forget_calls()
                done = line.cron(days * DAY)
                self.assertEqual((done.returncode, line.log()), (1, [KEYCHANGE]), done.all)
                self.assertRegex(done.stderr, word)
                done = line.run('status', after=days * DAY + HOUR, check=1)
                self.assertRegex(done.stdout, word)
            line.write('zone', tlsa_line(World.old))
            line.cron(3 * DAY, check=0)
            line.run('status', after=3 * DAY, check=0)
            line.cron(4 * DAY)

    def test_of_the_live_key_while_one_is_staged(self):
        """That keeps clients away now: it is said at once."""
        line = self.line()
        line.write('lie')
        line.write('zone', tlsa_line(World.new))
        done = line.cron(600, check=1)
        self.assertRegex(done.stderr, "for 'live'")
        self.assertEqual(line.log(), [KEYCHANGE])

    def test_a_resolver_may_remember_for_long_that_there_is_none(self):
        line = self.line('settled', dns_servers=None, dns_resolver=self.resolver.address)
        line.write('lie')
        line.write('zone', '')
        done = line.cron(DAY, ports={'127.0.0.11': self.own.port, '127.0.0.12': self.own.port})
        self.assertRegex(done.stderr, r'stay cached for [0-9]+ s')


class Before(Case):
    """init where DNS holds what this line did not put there."""

    def fresh(self, digest):
        """A line whose live.key is lost, or another client's, with this in DNS."""
        line = self.line('settled')
        line.write('zone', tlsa_line(digest))
        for name in line.key(), line.crt():
            os.unlink(name)
        line.lose_state()
        line.forget_calls()
        return line

    def test_records_of_another_key(self):
        line = self.fresh('ab' * 32)
        done = line.run('init', hooks=True, check=1)
        self.assertIn('ab' * 32, done.stderr)
        self.assertEqual((line.log(), line.digests()), ([], {'ab' * 32}))
        for _ in range(2):
            done = line.cron(DAY, check=1)
        self.assertEqual((line.log(), line.digests()), ([], {'ab' * 32}))

    def test_the_key_that_they_want_is_put_there(self):
        line = self.fresh(World.new)
        line.run('init', hooks=True, check=1)
        shutil.copy(os.path.join(World.folder, 'staged', 'keys', 'staging.key'), line.key())
        line.run('init', hooks=True, check=0, after=HOUR)
        self.assertEqual((line.digests(), spki(line.key())), ({World.new}, World.new))
        self.assertEqual(line.log()[:1], [CERTCHANGE])

    def test_the_new_one_is_published_beside_it_first(self):
        line = self.fresh('ab' * 32)
        line.run('init', hooks=True, check=1)
        line.write('zone', line.read('zone') + tlsa_line(spki(line.key())))
        line.run('init', hooks=True, check=0, after=HOUR)
        self.assertIn(CERTCHANGE, line.log())

    def test_who_wants_it_now(self):
        line = self.fresh('ab' * 32)
        line.run('init', '--now', hooks=True, check=0)
        self.assertEqual(line.digests(), {spki(line.key())})


class Refused(Case):
    def test_a_resolver_that_is_only_authoritative(self):
        """It refuses all other names: then the question and the remedy are named."""
        line = self.line(dns_servers=None, dns_resolver=self.own.address)
        self.own.fault('refused', kind='NS')
        self.own.fault('refused', kind='SOA')
        done = self.assert_waits(line, 'SOA of|NS of', 'dns-servers')
        self.assertRegex(done.all, 'refuses|error 5')


if __name__ == '__main__':
    unittest.main()
