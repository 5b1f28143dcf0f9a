#!/usr/bin/env python3
"""Rollovers under DANE with real parts: not one client may fail, whatever breaks meanwhile.

    python3 tests/dane_lab.py --install          the Debian packages that are needed, as root
    python3 tests/dane_lab.py [SCENARIO...]      all scenarios or the named ones, as root
    python3 tests/dane_lab.py --quick            a few short ones
    python3 tests/dane_lab.py --list

Knot DNS, BIND, NSD and PowerDNS sign zones with TLSA records that live two seconds, unbound caches
them, nginx and postfix use the files of certificate lines that the embedded test CA certifies, and
the key hooks are those of examples/. In each scenario `cron -k` runs about once a second, while two
probes look ten times a second through one of two caches whether the service's key is in the records
that a client would go by; one of these caches is flushed and filled again before each change.
openssl s_client and posttls-finger judge as well.

All of it runs in network, mount and process namespaces of its own: nothing leaves the machine, and
nothing is left when the program ends, however it ends.
"""
import argparse
import concurrent.futures
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from types import SimpleNamespace

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ('bind9 bind9-dnsutils bind9-utils curl iproute2 knot ldnsutils nginx nsd openssl'
            ' pdns-backend-sqlite3 pdns-server postfix python3 python3-dnspython unbound util-linux'
            ).split()
PYTHON = '/usr/bin/python3'     # the one that Debian's python3-dnspython is for
PARALLEL = 5
DAY = 86400

# Before --install, this file needs nothing but Python.
try:
    from dane.servers import CACHES, TTL, Lab, LabError, Zone, digests, run, wait_for
    from dane.services import Nginx, Postfix, Probes
    from fake_ca import FakeCA
    from support import PROGRAM, Line, spki
except ImportError:
    if 'DANE_LAB' in os.environ:
        raise
    Nginx = Postfix = None


class Failed(Exception):
    """A scenario did not go as it must."""


# A hook that does what fault() orders.
FAULTY_HOOK = '''#!/bin/sh
{before}
case "$(cat {fault} 2> /dev/null)" in
silent) exit 0 ;;
loud) echo "broken on purpose" >&2; exit 1 ;;
late) (sleep 5; {action}) > /dev/null 2>&1 & exit 0 ;;
partial) export ONLY={zone.tlsa} ;;
stuck) {knotc} zone-begin {zone.name}; sleep 1000 ;;
esac
{action}
'''

# Before a change of the zone, and only then: cache B gets the records that are about to be old.
REFILL = '''
want=$(letsencrypt-tiny -c {config} tlsa | awk '/^{zone.tlsa}/ {{ print toupper($NF) }}' | sort)
have=$(dig +short +norecurse @{zone.servers[0]} {zone.tlsa} TLSA | awk '{{ print $4 $5 }}' | sort)
if [ "$want" != "$have" ]; then
{refill}
fi
'''


# ---- the course of a scenario -------------------------------------------------------------------

class Course:
    """One scenario while it runs: a line, its zone and its service, cron again and again, probes.

    spec        what scenario() was given
    rollovers   how often the live key changed
    events      list of (time, text): what was done and what the program said
    """

    def __init__(self, lab, spec, zone):
        self.lab, self.spec, self.zone, self.rollovers, self.events = lab, spec, zone, 0, []
        self.interval, self.random, self.next = 0.7, random.Random(spec.name), 0
        self.options = {key: value.format(zone) if isinstance(value, str) else value
                        for key, value in spec.options.items()}
        self.names = (self.options.get('tlsa') or zone.tlsa).split()
        self.probes = self.live = None

    def note(self, text):
        self.events.append((time.time(), text))

    def expect(self, condition, text):
        if not condition:
            raise Failed(text)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.ca = stack.enter_context(FakeCA())
            protocol = '/smtp' if self.spec.service is Postfix else ''
            options = {
                'domains': self.zone.host, 'tlsa': self.zone.tlsa, 'dns_resolver': CACHES['C'],
                'served': '%s:%d%s' % (self.zone.host, self.zone.port, protocol),
                'staging_hours': TTL / 3600, 'hook_timeout': 20}
            self.line = stack.enter_context(Line(self.ca, **dict(options, **self.options)))
            service = self.spec.service(self.lab, self.zone, self.line)
            self.write_hooks(service)
            self.program('init', hooks=False, check=0)
            self.live = self.key_file()
            # What smtpd reads is made by the hook; and the old logic runs none at its start.
            for hook in 'post-certchange', 'post-keychange':
                run(self.line.path(hook), env=self.environment())
            stack.callback(service.stop)
            service.start()
            self.settle()
            self.in_dns([CACHES['A'], CACHES['B']])
            self.probes = Probes(self.lab, service, self.names)
            stack.callback(self.probes.stop)
            self.probes.start()
            self.leave = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self.leave.close()

    def write_hooks(self, service):
        """Hooks that obey fault()."""
        hook, config = self.lab.key_hook(self.zone), self.line.config
        if self.spec.hook_tlsa:
            self.line.set(tlsa=self.spec.hook_tlsa.format(self.zone))
            config = self.line.path('hook.conf')
            shutil.copy(self.line.config, config)
            self.line.set(tlsa=self.options.get('tlsa', self.zone.tlsa))
        refill = REFILL.format(config=config, zone=self.zone,
                               refill=self.lab.refill('B', self.zone))
        for kind, before, action in ('cert', '', service.reload), (
                'key', refill, 'CONFIG=%s %s' % (config, hook)):
            text = FAULTY_HOOK.format(
                before=before, fault=self.line.path('fault-' + kind), action=action,
                knotc=self.lab.file('bin', 'knotc'), zone=self.zone)
            path = self.line.path('post-%schange' % kind)
            with open(path, 'w') as file:
                file.write(text)
            os.chmod(path, 0o755)
            self.line.set(**{'post_%schange' % kind: path})

    def fault(self, kind, how=None):
        """From now on the 'cert' or 'key' hook does nothing and exits 0 ('silent') or 1 ('loud'),
        exits 0 and works later ('late'), publishes only one name's records ('partial'), never ends
        in the midst of it ('stuck'), or works (None)."""
        self.note('%s hook: %s' % (kind, how or 'works'))
        with open(self.line.path('fault-' + kind), 'w') as file:
            file.write(how or '')

    def environment(self):
        return {'PATH': self.lab.path, 'HOME': '/', 'LANG': 'C', 'CONFIG': self.line.config,
                'LIVE_KEY': self.line.key(), 'LIVE_CRT': self.line.crt()}

    def key_file(self):
        with open(self.line.key(), 'rb') as file:
            return file.read()

    def staged(self):
        return os.path.exists(self.line.key('staging'))

    # -- the program

    def start(self, *args, hooks=True, now=None):
        """Start the program under test, or the old logic; return its Popen."""
        env = {'PATH': self.lab.path}
        if not self.spec.program:
            return self.line.start(*args, hooks=hooks, env=env, now=now)
        command = [PYTHON, os.path.join(HERE, 'dane', self.spec.program), '-c',
                   self.line.config] + ['-k'] * hooks + list(args)
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, encoding='utf-8',
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)

    def program(self, *args, check=None, kill_after=None, **options):
        """Run the program; return its exit status and all that it said.

        kill_after: seconds after which it is killed, and what it started as well every other time
        """
        process = self.start(*args, **options)
        if kill_after is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after)
            self.kill(process)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            self.kill(process)
            raise Failed('%s did not end within 120 seconds' % ' '.join(args)) from None
        status, said = process.returncode, (out + err).strip()
        self.note('%s: %d%s' % (' '.join(args), status, '\n    ' + '\n    '.join(
            said.splitlines()) if said else ''))
        self.expect('Traceback' not in said, 'a traceback:\n' + said)
        self.expect(check is None or status == check, '%s: exit status %d: %s' % (
            ' '.join(args), status, said))
        if self.live and self.key_file() != self.live:
            self.live, self.rollovers = self.key_file(), self.rollovers + 1
            self.note('ROLLOVER %d' % self.rollovers)
        return status, said

    def kill(self, process):
        """SIGKILL for the program, and half of the time for the sessions that it started."""
        victims = []
        if self.random.random() < 0.5:
            with contextlib.suppress(OSError), open(
                    '/proc/%d/task/%d/children' % (process.pid, process.pid)) as file:
                victims = [int(pid) for pid in file.read().split()]
        process.kill()
        for victim in victims:
            with contextlib.suppress(OSError):
                (os.killpg if os.getpgid(victim) == victim else os.kill)(victim, signal.SIGKILL)

    def cron(self, **options):
        """cron -k, once an interval. Returns its exit status and what it said."""
        time.sleep(max(0, self.next - time.monotonic()))
        self.next = time.monotonic() + self.interval
        status, said = self.program('cron', **options)
        if self.spec.strict:
            self.expect(status == 0, 'cron: exit status %d: %s' % (status, said))
        return status, said

    def cron_for(self, seconds, **options):
        """cron -k for so long, with the key that is live now and will be live then."""
        live, end = self.live, time.monotonic() + seconds
        while time.monotonic() < end:
            self.cron(**options)
        self.expect(self.live == live or self.spec.fails, 'the staged key went live')

    def until(self, condition, seconds, what):
        """cron -k until condition() is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.expect(time.monotonic() < deadline, 'not within %d seconds: %s' % (seconds, what))
            self.cron()

    def stage(self, seconds=0):
        """Start a rollover, and run cron for some seconds of its staging time."""
        self.program('renew', '--new-key')
        self.expect(self.staged(), 'no key was staged')
        self.cron_for(seconds)

    def swap(self):
        """Run cron until the live key changes."""
        count = self.rollovers
        self.until(lambda: self.rollovers > count, 25, 'a rollover')

    def settle(self, seconds=45):
        """cron -k until nothing is staged (but a standby key) and nothing is said, and the zone is
        as it must be."""
        start, deadline = time.monotonic(), time.monotonic() + seconds
        while self.cron() != (0, '') or self.staged() != ('standby' in self.options):
            if time.monotonic() > deadline:
                self.program('tlsa', '--check', hooks=False)
                raise Failed('it does not settle in %d seconds' % seconds)
        if not self.spec.fails:
            self.in_dns(self.zone.servers)
        self.note('settled in %.1f s' % (time.monotonic() - start))

    def roll(self):
        """One whole rollover."""
        count = self.rollovers
        self.stage()
        self.settle()
        self.expect(self.rollovers == count + 1, '%d rollovers' % (self.rollovers - count))

    def in_dns(self, servers):
        """LabError unless these servers soon hold records for just the keys that are there."""
        expected = {spki(self.line.key(name)) for name in ('live', 'staging')[:1 + self.staged()]}
        for server in servers:
            wait_for(lambda server=server: all(
                digests(server, name) == expected for name in self.names), 5,
                'records of %s at %s' % (self.zone.name, server))

    def both_published(self):
        """Whether all servers of the zone have two keys."""
        return all(len(digests(server, name)) == 2 for name in self.names
                   for server in self.zone.servers)

    def published(self):
        """Run cron until both keys are in the zone."""
        self.expect(self.staged(), 'nothing is staged')
        self.until(self.both_published, 15, 'both keys in the zone')

    def write(self, found, ttl):
        """By hand, put records of these digests and no others into a zone of BIND."""
        update = ['server ' + self.zone.servers[0], 'update del %s. TLSA' % self.zone.tlsa]
        update += ['update add %s. %d TLSA 3 1 1 %s' % (self.zone.tlsa, ttl, digest)
                   for digest in found]
        run('nsupdate', '-v', '-k', self.lab.file('tsig.key'), input='\n'.join(
            update + ['send', '']))


SCENARIOS = {}


def scenario(kind, service=Nginx, quick=False, strict=False, insecure=False, fails=False,
             program=None, alias=False, hook_tlsa=None, **options):
    """Decorator of a scenario, a function of a Course.

    kind        of its zone, see KINDS
    quick       is it one of --quick
    strict      must every cron succeed
    insecure    do clients have to defer for a while, as there is no secure answer
    fails       must it show failed probes, to prove that they can be seen
    program     a program in dane/ instead of the one under test
    alias       as of a Zone
    hook_tlsa   what the key hook finds in the config as `tlsa`, if that is not what cron finds
    options     of the config, in which {0} is the Zone
    """
    def decorate(function):
        name = function.__name__.replace('_', '-')
        SCENARIOS[name] = SimpleNamespace(
            name=name, function=function, kind=kind, service=service, quick=quick, strict=strict,
            insecure=insecure, fails=fails, program=program, alias=alias, hook_tlsa=hook_tlsa,
            options=options)
        return function
    return decorate


# ---- scenarios ----------------------------------------------------------------------------------

@scenario('knot', quick=True, strict=True)
def plain(course):
    """Ten rollovers because of the key's age, the zone's servers found by NS records."""
    course.line.set(max_key_age_days=6 / DAY)
    course.until(lambda: course.rollovers >= 10, 200, '10 rollovers')
    course.line.set(max_key_age_days=365)
    course.settle()


@scenario('bind', service=Postfix, quick=True, dns_resolver=None)
def mail(course):
    """smtpd with STARTTLS, and the resolver in /etc/resolv.conf."""
    for _ in range(4):
        course.roll()


@scenario('knot', key_type='rsa', key_length=2048)
def rsa(course):
    """Rollovers of RSA keys, from RSA to EC and back."""
    course.roll()
    course.roll()
    for kind, length in ('ec-p384', None), ('ec-p256', None), ('rsa', 2048):
        course.line.set(key_type=kind, key_length=length)
        course.until(course.staged, 20, 'a key of the new type')
        course.settle()
    course.expect(course.rollovers == 5, '%d rollovers' % course.rollovers)


@scenario('bind')
def silent_key_hook(course):
    """post-keychange exits 0 and does nothing for a while, or does its work late."""
    for how in 'silent', 'late', 'silent':
        course.fault('key', how)
        course.stage(8)
        course.fault('key')
        course.settle()
    # When the old key is to leave DNS, it does no harm that it stays.
    course.stage()
    course.published()
    course.fault('key', 'silent')
    course.swap()
    course.cron_for(3)
    course.fault('key')
    course.roll()


@scenario('knot', dns_servers='127.0.0.2 127.0.0.3@53')
def loud_key_hook(course):
    """post-keychange fails for a while, before and after the new key is live."""
    for _ in range(2):
        course.fault('key', 'loud')
        course.stage(6)
        course.fault('key')
        course.published()
        course.fault('key', 'loud')
        course.swap()
        course.cron_for(3)
        course.fault('key')
        course.settle()


@scenario('knot')
def cert_hook(course):
    """post-certchange fails or lies for a while: the service keeps the old key."""
    for how in 'loud', 'silent', 'late':
        course.fault('cert', how)
        course.stage()
        course.swap()
        course.cron_for(5)
        course.fault('cert')
        course.settle()


@scenario('knot')
def killed(course):
    """SIGKILL at random moments, for cron or for all that it started; a lost state file."""
    course.line.set(max_key_age_days=5 / DAY)
    course.interval, end = 0.4, time.monotonic() + 50
    while time.monotonic() < end:
        if course.random.random() < 0.05:
            course.note('the state is lost')
            with contextlib.suppress(FileNotFoundError):    # lost just before
                os.remove(course.line.path('certs', 'live.state'))
        course.cron(kill_after=course.random.choice((0.1, 0.3, 0.6)) * course.random.random()
                    if course.random.random() < 0.6 else None)
    course.line.set(max_key_age_days=365)
    course.settle()
    course.expect(course.rollovers >= 3, 'only %d rollovers' % course.rollovers)


@scenario('bind', dns_resolver='127.0.0.14')
def resolver_down(course):
    """The program's resolver is stopped or dead, before and after both keys were seen."""
    daemon = course.lab.caches['D']
    course.stage()
    daemon.stop()
    course.cron_for(8)
    daemon.start()
    course.settle()
    course.stage()
    course.published()
    daemon.signal(signal.SIGSTOP)
    course.cron_for(8)
    daemon.signal(signal.SIGCONT)
    course.settle()


@scenario('nsd', insecure=True)
def bogus(course):
    """The zone's signer has a wrong clock for a while, before and after both keys were seen."""
    wrong = course.lab.file(course.zone.name + '.expired')
    for early in True, False:
        course.stage()
        if not early:
            course.published()
        course.note('bogus')
        open(wrong, 'w').close()
        run(course.lab.key_hook(course.zone), env=course.environment())
        course.cron_for(8)
        course.note('mended')
        os.remove(wrong)
        run(course.lab.key_hook(course.zone), env=course.environment())
        for cache in CACHES:    # else unbound remembers for a minute that the keys were no good
            run(*course.lab.control(cache, 'flush_bogus').split())
        course.settle()


@scenario('nsd', insecure=True)
def bogus_at_start(course):
    """The signatures have ended before a key is staged; only the key hook makes new ones."""
    wrong = course.lab.file(course.zone.name + '.expired')
    open(wrong, 'w').close()
    run(course.lab.key_hook(course.zone), env=course.environment())
    time.sleep(4)   # until no cache has the good ones
    os.remove(wrong)
    course.program('renew', '--new-key')
    course.cron_for(2)
    for _ in range(5):
        for cache in CACHES:    # else unbound remembers for a minute that the keys were no good
            run(*course.lab.control(cache, 'flush_bogus').split())
        for _ in range(3):
            course.cron()
    course.settle()


@scenario('knot')
def clock(course):
    """The machine's clock jumps, ahead or back, and is right again after a while."""
    for days in 400, -400, 3, -3:
        course.stage()
        course.note('clock: %+d days' % days)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            course.cron_for(0.1, now=time.time() + days * DAY)
        course.note('clock: right')
        course.settle()
    course.expect(course.rollovers == 4, '%d rollovers' % course.rollovers)


@scenario('bind', dns_servers='127.0.0.3 127.0.0.2')
def secondary_lags(course):
    """The secondary gets no new zone for a while: before the new key is in it, and after."""
    knotc = course.lab.file('bin', 'knotc')
    for _ in range(2):
        run(knotc, 'zone-freeze', course.zone.name)
        course.stage(8)
        # The worst moment: cache B has just asked the secondary again.
        for _ in range(20):
            run('sh', '-c', course.lab.refill('B', course.zone))
            if len(digests(CACHES['B'], course.zone.tlsa)) == 1:
                break
        run(knotc, 'zone-thaw', course.zone.name)
        course.published()
        run(knotc, 'zone-freeze', course.zone.name)
        course.swap()
        course.cron_for(3)
        run(knotc, 'zone-thaw', course.zone.name)
        course.settle()


@scenario('bind')
def put_back(course):
    """Another tool writes the old records again, at once or just when the new key may go live."""
    for margin in None, 0.6, -0.1, 0.6, -0.1:
        old = digests(course.zone.servers[0], course.zone.tlsa)
        course.stage()
        course.published()
        if margin:
            course.until(lambda: 'seen' in course.line.state(), 10, 'both keys seen')
            time.sleep(max(0, course.line.state()['seen'] + 2 * TTL - margin - time.time()))
        course.note('the old records are back')
        # The worst moment: the program's resolver has just asked for the new ones.
        run('sh', '-c', course.lab.refill('C', course.zone))
        course.write(old, TTL)
        course.settle()
    course.expect(course.rollovers == 5, '%d rollovers' % course.rollovers)


@scenario('bind')
def ttl_lowered(course):
    """The old records had a longer TTL than those that the key hook writes."""
    for _ in range(2):
        course.write(digests(course.zone.servers[0], course.zone.tlsa), 4 * TTL)
        course.stage()
        wait_for(course.both_published, 5, 'both keys in the zone')
        # The worst moment: the program's resolver, unlike cache B, has no old records.
        run('sh', '-c', course.lab.refill('C', course.zone))
        course.settle()


@scenario('knot', hook_timeout=3)
def stuck_key_hook(course):
    """post-keychange hangs, in the midst of a transaction, until it is killed."""
    course.fault('key', 'stuck')
    course.stage(6)
    course.fault('key')
    course.settle()
    course.roll()


@scenario('knot', tlsa='{0.tlsa} {0.second}')
def two_names(course):
    """Two names, the second of which is forgotten for a while."""
    course.fault('key', 'partial')
    course.stage(8)
    course.fault('key')
    course.settle()
    course.roll()


@scenario('knot', alias=True, hook_tlsa='{0.second}')
def alias(course):
    """The TLSA name is an alias (CNAME) of the name that the hook looks after."""
    course.fault('key', 'silent')
    course.stage(8)
    course.fault('key')
    course.settle()
    course.roll()


@scenario('knot', standby='yes')
def standby(course):
    """A standby key in DNS all the time: a swap at once, and renewals meanwhile."""
    for _ in range(3):
        course.cron_for(3 * TTL)
        course.expect(course.program('renew')[0] == 0, 'no renewal')
        course.cron_for(1)
        count = course.rollovers
        course.program('renew', '--new-key', '--now')
        course.expect(course.rollovers == count + 1, 'the standby key is not live')
        course.settle()


@scenario('include', dns_resolver='127.0.0.3')
def bind_include(course):
    """A zone file by hand, and the machine's own name server is all that there is to ask."""
    course.roll()
    course.roll()


@scenario('nsd')
def nsd_ldns(course):
    """A zone that the hook signs."""
    course.roll()
    course.roll()


@scenario('powerdns')
def powerdns(course):
    """A zone that is changed by HTTP."""
    course.roll()
    course.roll()


# ---- scenarios that must fail -------------------------------------------------------------------

@scenario('bind', fails=True, quick=True, program='logic2017.py')
def logic_of_2017(course):
    """A hook that does nothing, and a secondary that lags, with the logic of 2017."""
    course.fault('key', 'silent')
    course.stage(8)
    course.fault('key')
    course.roll()
    run(course.lab.file('bin', 'knotc'), 'zone-freeze', course.zone.name)
    course.stage(8)
    run(course.lab.file('bin', 'knotc'), 'zone-thaw', course.zone.name)
    course.settle()


@scenario('bind', fails=True, hook_tlsa='{0.tlsa}', tlsa=None, served=None)
def no_look_at_dns(course):
    """A hook that does nothing, and a config without `tlsa`."""
    course.fault('key', 'silent')
    course.stage(8)
    course.fault('key')
    course.settle()


@scenario('knot', fails=True, served=None)
def no_look_at_services(course):
    """A service that keeps the old key, and a config without `served`."""
    course.fault('cert', 'silent')
    course.stage()
    course.swap()
    course.cron_for(5)
    course.fault('cert')
    course.settle()


# ---- running them -------------------------------------------------------------------------------

def perform(lab, spec, zone, lock):
    """Run a scenario and report it (under a lock). Returns whether all is well."""
    start, course, problem = time.monotonic(), Course(lab, spec, zone), None
    try:
        with course:
            spec.function(course)
            time.sleep(1)   # probes of the end
    except (Failed, LabError, AssertionError) as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    probes = course.probes
    count, failed, deferred, late, judged = (
        (probes.ok + probes.late + len(probes.failed) + len(probes.deferred), probes.failed,
         probes.deferred, probes.late, probes.judged) if probes else (0, [], [], 0, 0))
    seconds = time.monotonic() - start
    if not problem and spec.fails:
        problem = None if failed else 'no probe failed'
    elif not problem:
        problem = ('failed probes' if failed or deferred and not spec.insecure else
                   'no answer was insecure' if spec.insecure and not deferred else
                   'too few good probes: the machine is too slow' if (
                       late > count / 20 or count < 3 * seconds or not judged) else None)
    with lock:
        print('%-20s %9d %7d %7d %9d %5d %7d %6.0f s  %s' % (
            spec.name, course.rollovers, count, len(failed), len(deferred), late, judged, seconds,
            'FAILED: ' + problem if problem else 'ok'), flush=True)
        if not problem:
            return True
        lines = course.events + [(when, 'FAILED PROBE ' + text) for when, text in failed[:20]] + [
            (when, 'NO SECURE ANSWER ' + text) for when, text in deferred[:20]]
        for when, text in sorted(lines)[-150:]:
            print('    %s%s %s' % (time.strftime('%M:%S', time.gmtime(when)),
                                   ('%.2f' % (when % 1))[1:], text))
        return False


def perform_all(specs):
    """Run scenarios, several at a time. Returns whether all is well."""
    for command in (['ip', 'link', 'set', 'lo', 'up'],
                    # named listens only on addresses that an interface has
                    ['ip', 'address', 'add', '127.0.0.3/8', 'dev', 'lo']):
        run(*command)
    folder = tempfile.tempdir = os.environ['DANE_LAB']
    run('mount', '-t', 'tmpfs', '-o', 'mode=755', 'dane-lab', folder)
    os.umask(0o022)
    zones = [Zone(spec.name + '.example.org', spec.kind, 4430 + number, spec.alias)
             for number, spec in enumerate(specs)]
    for name, address in CACHES.items():
        with open(os.path.join(folder, 'resolv-%s.conf' % name), 'w') as file:
            file.write('nameserver %s\n' % address)
    run('mount', '--bind', os.path.join(folder, 'resolv-A.conf'), '/etc/resolv.conf')
    print('%-20s %9s %7s %7s %9s %5s %7s' % (
        'scenario', 'rollovers', 'probes', 'failed', 'deferred', 'late', 'judged'), flush=True)
    pool, lock = concurrent.futures.ThreadPoolExecutor(PARALLEL), threading.Lock()
    with Lab(folder, zones, PROGRAM) as lab, pool:
        results = list(pool.map(lambda pair: perform(lab, *pair, lock), zip(specs, zones)))
    print('%d passed, %d failed, 0 skipped' % (sum(results), len(results) - sum(results)),
          flush=True)
    return all(results)


def install():
    """Install the packages without starting their services."""
    policy = '/usr/sbin/policy-rc.d'
    made = not os.path.exists(policy)
    if made:
        with open(policy, 'w') as file:
            file.write('#!/bin/sh\nexit 101\n')
        os.chmod(policy, 0o755)
    try:
        env = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
        for command in ['update'], ['install', '--no-install-recommends', *PACKAGES]:
            subprocess.run(['apt-get', '-qq', *command], env=env, check=True,
                           stdin=subprocess.DEVNULL)
    finally:
        if made:
            os.remove(policy)


def unshare():
    """Run this program in namespaces of its own, which end with it. Returns its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # In /run, as all that leads to it belongs to root and may be entered by everyone.
    folder = tempfile.mkdtemp(prefix='dane-', dir='/run')
    try:
        return subprocess.run(
            ['setpriv', '--pdeathsig', 'KILL', 'unshare', '--net', '--mount', '--pid', '--fork',
             '--kill-child', '--mount-proc', PYTHON, os.path.abspath(__file__)] + sys.argv[1:],
            env=dict(os.environ, DANE_LAB=folder)).returncode
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--install', action='store_true')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('scenario', nargs='*')
    options = parser.parse_args()
    if options.install:
        return install()
    if options.list:
        for name, spec in SCENARIOS.items():
            print('%-20s %s' % (name, spec.function.__doc__))
        return 0
    for name in options.scenario:
        if name not in SCENARIOS:
            parser.error('no such scenario: ' + name)
    if 'DANE_LAB' not in os.environ:
        return unshare()
    wanted = options.scenario or [
        name for name, spec in SCENARIOS.items() if spec.quick or not options.quick]
    return 0 if perform_all([SCENARIOS[name] for name in wanted]) else 1


if __name__ == '__main__':
    sys.exit(main())
