#!/usr/bin/env python3
"""Years in seconds: the program's own decide(), with a model of the rest of the world.

    python3 tests/simulation.py --years 2000 --seed 1 [--break NAME]

A life is three virtual years of one line with a daily cron job: a zone with its servers and the
caches that hold its old sets, services that are restarted at random moments, a CA with limits and
bad days, hooks that fail before or after their effect (or lie, where DNS and the services are
looked at), crashes between any two steps, full disks, lost state files, clocks that jump, an
administrator who renews by hand. All of it comes from a seed, which every failure prints.

Safety, at every moment: the key that a service uses is in every TLSA set that a cache may hold;
the live files are there, and fit after every run that was not killed; whatever was live is live or
in the backups; no request before the CA allows it; no more orders than the CA's limits, unless
orders were lost or the administrator made them.
Liveness: when the faults stop, all is settled after two runs.

--break plays a design that was not taken, which must be found wrong.
"""
import argparse
import collections
import os
import random
import sys
import time
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from letsencrypt_tiny import (
    OPTIONS, Config, Crt, Facts, Key, decide, hooks_owed, keys_of, request_due, staged_pair)

MINUTE, HOUR, DAY = 60, 3600, 86400
YEAR = 365 * DAY
LIFE = 3 * YEAR
RETRY = 0, MINUTE, 10 * MINUTE, 100 * MINUTE, DAY - 10 * MINUTE
LIMIT, LIMIT_SECONDS = 5, 7 * DAY               # certificates for the same names
ORDERS, ORDERS_SECONDS = 300, 3 * HOUR
CERTCHANGE, KEYCHANGE = 'post-certchange', 'post-keychange'


def plain_config(**options):
    """The program's Config with these options, the others as if left out."""
    values = {row[0].replace('-', '_'): None if row[1] is ... else row[1] for row in OPTIONS}
    values.update(domains=['example.org'], key_type='ec-p256', max_key_age_days=365.0,
                  account_key='/x/a', challenge_dir='/x/w', certs='/x/c', keys='/x/k',
                  backups='/x/b')
    values.update(options)
    return Config(file='/x/conf', **values)


class Violation(Exception):
    """What must never happen."""


class Killed(Exception):
    """The program dies here."""


class Ended(Exception):
    """The run ends with an error that it tells."""


class Refused(Exception):
    """The CA gives no certificate; args[0]: Retry-After in seconds, or None."""


# ---- designs that were not taken ----------------------------------------------------------------

def clock_from_key_age(config, facts, now):
    """The staging time starts when the key is made, not when it is published."""
    if staged_pair(facts) and 'published' in facts.state:
        facts = facts._replace(state=dict(facts.state, published=facts.staging_key.made))
    return decide(config, facts, now)


def keychange_first(config, facts, now):
    """post-keychange is run before post-certchange."""
    step = decide(config, facts, now)
    if (step.verb, step.what) == ('hook', CERTCHANGE) and KEYCHANGE in hooks_owed(config, facts):
        return step._replace(what=KEYCHANGE)
    return step


def word_of_the_hook(config, facts, now):
    """Nobody looks at DNS."""
    return decide(config._replace(tlsa=None), facts, now)


def one_look(config, facts, now):
    """DNS is looked at until it is right, and never again."""
    if 'seen' in facts.state:
        facts = facts._replace(dns=[])
    return decide(config, facts, now)


def no_look_at_services(config, facts, now):
    """The old key leaves DNS on the word of post-certchange."""
    return decide(config._replace(served=None), facts, now)


def any_clock(config, facts, now):
    """Our clock is always right."""
    return decide(config, facts._replace(skew=0), now)


def no_back_off(config, facts, now):
    """A failure is forgotten."""
    state = {name: value for name, value in facts.state.items() if name != 'retry'}
    return decide(config, facts._replace(state=state), now)


def no_repair(config, facts, now):
    """A pair that was half live is not mended, but requested anew."""
    step = decide(config, facts, now)
    return step._replace(verb='drop') if (step.verb, step.what) == ('rename', 'crt') else step


BREAKS = {'clock-from-key-age': clock_from_key_age, 'keychange-first': keychange_first,
          'started-is-done': decide,            # the executor's part, see do_hook()
          'word-of-the-hook': word_of_the_hook, 'one-look': one_look,
          'no-look-at-services': no_look_at_services, 'any-clock': any_clock,
          'no-back-off': no_back_off, 'no-repair': no_repair}


# ---- one life -----------------------------------------------------------------------------------

class Life:
    """A line, its executor and its world. All times are seconds; self.t is the true time."""

    def __init__(self, seed, broken=None, trace=None):
        self.seed, self.broken = seed, broken
        self.decide = BREAKS[broken] if broken else decide
        self.trace = trace
        self.random = dice = random.Random(seed)
        self.t, self.offset = 1.8e9, 0.0
        self.counts = collections.Counter()
        # What the world is like: no DANE; trust in the hooks; a look at DNS; and at the services
        self.kind = dice.choices(('plain', 'hooks', 'dns', 'served'), (1, 4, 3, 3))[0]
        self.heat = dice.choice((0, .3, 1, 1, 3))
        self.ttl = dice.choice((5 * MINUTE, HOUR, 6 * HOUR, DAY))
        hours = {'plain': dice.choice((0, 48)), 'hooks': self.ttl / HOUR * dice.uniform(1, 3),
                 }.get(self.kind, dice.choice((1, 24, 48)))
        hooked = self.kind != 'plain' or dice.random() < .7
        self.config = plain_config(
            staging_hours=float(hours), max_key_age_days=dice.choice((10., 30., 100., 365.)),
            renew_cert_before_expiry_days=dice.choice((None, None, 15.)),
            standby='yes' if hours and dice.random() < .15 else 'no',
            post_certchange='/x/c' if hooked else None, post_keychange='/x/k' if hooked else None,
            tlsa=['_25._tcp.mx.example.org'] if self.kind in ('dns', 'served') else None,
            served=['mx.example.org:25'] if self.kind == 'served' else None)
        self.validity = dice.choice((90, 90, 45, 10, 160 / 24)) * DAY
        # Certificates of a few days, or keys of ten, need another CA than one with such a limit.
        small = self.validity < 45 * DAY or self.config.max_key_age_days < 30
        self.limit = 10 * LIMIT if small else LIMIT
        self.serial = 0
        # The line is set up, and its key is in DNS.
        self.live_key, self.staging_key, self.staging_crt = self.new_key(), None, None
        self.live_crt = self.new_crt(self.live_key.spki)
        self.state, self.backups, self.was_live = {}, set(), set()
        key = self.live_key.spki
        self.services = [key] * dice.choice((1, 2, 3))
        self.servers = [frozenset([key])] * (dice.choice((1, 2, 3)) if self.config.tlsa else 1)
        self.old_sets, self.transfers = [], []  # [(set, until)], [(when, server)]
        # The CA: what it issued and was asked, until when it wants to be left alone
        self.issued, self.orders = collections.deque(), collections.deque()
        self.lost, self.by_hand = -1e9, -1e9    # the last order in vain, the last by hand
        self.forbidden = 0
        self.ca_fault, self.hook_faults, self.clock_until = (None, 0), {}, 0
        self.quiet = False
        self.note_live()

    def note(self, text, *args):
        if self.trace:
            self.trace('%9.3f %s' % ((self.t - 1.8e9) / DAY, text % args))

    # -- the files

    def new_key(self):
        self.serial += 1
        return Key(spki='key%d' % self.serial, kind=self.config.key_type, bits=256,
                   made=self.clock())

    def new_crt(self, spki):
        self.serial += 1
        return Crt(names=tuple(self.config.domains), not_before=self.t - HOUR,
                   not_after=self.t - HOUR + self.validity, spki=spki,
                   sha256='crt%d' % self.serial)

    def note_live(self):
        self.was_live |= {self.live_key.spki, self.live_crt.sha256}
        if not self.was_live <= self.backups | {self.live_key.spki, self.live_crt.sha256}:
            raise Violation('something that was live is gone')

    def fits(self):
        return self.live_crt.spki == self.live_key.spki

    def write(self, **changes):
        """Change the state file."""
        self.tick()
        self.state = {name: value for name, value in dict(self.read_state(), **changes).items()
                      if value is not None}
        self.tick()

    def read_state(self):
        """The state without what lies further ahead than the program could have set it."""
        now, state = self.clock(), dict(self.state)
        for name in 'published', 'seen':
            if state.get(name, 0) > now:
                del state[name]
        retry = state.get('retry')
        if retry and retry['after'] > now + (8 * DAY if retry['server'] else DAY):
            del state['retry']
        return state

    # -- time, crashes, services

    def clock(self):
        """What the machine's clock shows."""
        return self.t + self.offset

    def tick(self, seconds=5):
        """Some time passes in a run, in which it may be killed, or the disk be full."""
        self.t += self.random.random() * seconds
        if self.transfers:
            self.bring_up_to_date()
        if self.quiet or not self.heat:
            return
        dice = self.random.random() / self.heat
        if dice < .01:
            self.counts['crashes'] += 1
            raise Killed
        if dice < .015:
            self.counts['disk errors'] += 1
            raise Ended
        if dice < .035:
            self.restart(self.random.randrange(len(self.services)))

    def restart(self, number):
        """A service reads the live files, if they fit; else it goes on as it is."""
        if self.fits() and self.services[number] != self.live_key.spki:
            self.services[number] = self.live_key.spki
            self.note('service %d uses %s', number, self.live_key.spki)
            self.check_dane()

    # -- DNS

    def bring_up_to_date(self):
        """Let the secondary servers do the transfers that are due."""
        for when, number in sorted(self.transfers):
            if when <= self.t:
                self.transfers.remove((when, number))
                self.serve(number, self.servers[0], when)

    def serve(self, number, keys, since):
        """Since then, a server of the zone answers with this set of keys."""
        if self.servers[number] != keys:
            self.note('server %d answers %s', number, sorted(keys))
            self.old_sets.append((self.servers[number], since + self.ttl))
            self.servers[number] = keys
            self.check_dane()

    def publish(self, keys):
        """Someone writes the zone; the secondary servers follow, mostly soon."""
        self.serve(0, keys, self.t)
        for number in range(1, len(self.servers)):
            slow = self.heat and not self.quiet and self.random.random() < .2
            self.transfers.append((self.t + self.random.random() * (2 * DAY if slow else 60),
                                   number))

    def visible(self):
        """All sets that somebody may see now: servers' and caches'."""
        self.old_sets = [pair for pair in self.old_sets if pair[1] > self.t]
        return list(self.servers) + [keys for keys, _ in self.old_sets]

    def check_dane(self):
        if self.kind != 'plain':
            for keys in self.visible():
                for key in self.services:
                    if key not in keys:
                        raise Violation('a service uses %s, a cache may hold %s' % (
                            key, sorted(keys)))

    # -- the CA

    def ask_ca(self):
        """One request; Refused if it is in vain."""
        if self.t < self.forbidden:
            raise Violation('a request %d s before the CA allows it' % (self.forbidden - self.t))
        self.counts['requests'] += 1
        mode = self.ca_fault[0]
        if mode == 'away':
            raise Refused(None)
        if mode == 'busy':
            self.refuse(self.random.choice((90, HOUR, 2 * DAY)))

    def refuse(self, seconds):
        """The CA says for how long it wants to be left alone."""
        self.counts['retry-after'] += 1
        self.note('the CA wants to be left alone for %d s', seconds)
        # A second that our clock has not seen is no breach.
        self.forbidden = self.t + seconds - 1
        raise Refused(seconds)

    def order(self, spki):
        """A certificate from the CA, or Refused."""
        self.ask_ca()
        names = tuple(self.config.domains)
        self.orders.append(self.t)
        while self.orders[0] < self.t - ORDERS_SECONDS:
            self.orders.popleft()
        if len(self.orders) > ORDERS:
            raise Violation('%d orders in %d h' % (len(self.orders), ORDERS_SECONDS / HOUR))
        while self.issued and self.issued[0][0] < self.t - LIMIT_SECONDS:
            self.issued.popleft()
        same = [when for when, some in self.issued if some == names]
        if len(same) >= self.limit:
            if max(self.lost, self.by_hand) < self.t - LIMIT_SECONDS:
                raise Violation('%d orders for the same names in %d days, without need' % (
                    len(same) + 1, LIMIT_SECONDS / DAY))
            self.counts['limits met'] += 1
            self.refuse(same[0] + LIMIT_SECONDS - self.t + 1)
        if self.ca_fault[0] == 'invalid':
            raise Refused(None)
        self.tick(30)
        self.issued.append((self.t, names))
        self.counts['issued'] += 1
        self.tick(30)
        crt = self.new_crt(spki)
        now = self.clock()
        if self.ca_fault[0] == 'lost' or not crt.not_before - HOUR < now < crt.not_after:
            raise Refused(None)
        return crt

    # -- the executor: as the program's, each do_X() for decide's verb X

    def run(self, hooks=True, force=''):
        """One run of the program; returns the last step, None if it was cut off."""
        self.counts['runs'] += 1
        self.steps, self.failed = [], False
        run = SimpleNamespace(asked=frozenset(), force=force, hooks=hooks, skew=None, dns=None,
                              served=None)
        try:
            if force in ('renew', 'new-key') and not self.read_state().get('retry', {}).get(
                    'server', True):
                self.write(retry=dict(self.state['retry'], after=0))
            step = self.reconcile(run)
        except Killed:
            self.note('killed')
            return None
        except Ended:
            step = None
        if not self.fits() and step:
            raise Violation('the live files do not fit after a run')
        return step

    def facts(self, run):
        return Facts(live_key=self.live_key, live_crt=self.live_crt,
                     staging_key=self.staging_key, staging_crt=self.staging_crt,
                     state=self.read_state(), asked=run.asked, force=run.force, hooks=run.hooks,
                     skew=run.skew, dns=run.dns, served=run.served)

    def reconcile(self, run):
        for _ in range(50):
            facts = self.facts(run)
            step = self.decide(self.config, facts, self.clock())
            if step.verb == 'wait':
                return step
            self.note('%s %s: %s', step.verb, step.what, step.why)
            self.steps.append(step.verb)
            getattr(self, 'do_' + step.verb)(run, facts, step)
        raise Violation('one run does not settle: %s %s' % (step.verb, step.what))

    def do_clock(self, run, facts, step):
        try:
            self.ask_ca()
        except Refused as error:
            if error.args[0] is not None:
                self.note_failure(1, error.args[0])
            run.skew = 0
        else:
            run.skew = -self.offset

    def note_failure(self, count, seconds):
        """Write a failed request into the state."""
        until, self.forbidden = self.forbidden, 0   # as long as that is not written, who knows?
        self.write(retry=self.failure(count, seconds))
        self.forbidden = until

    def failure(self, count, seconds):
        """The state's note of a failed request."""
        wait = RETRY[min(count, 4)] if seconds is None else min(seconds, 8 * DAY)
        return {'count': count, 'names': self.config.domains, 'server': seconds is not None,
                'directory': self.config.directory_url, 'error': 'x', 'after': self.clock() + wait}

    def do_request(self, run, facts, step):
        name = step.what
        key, old = getattr(facts, name + '_key'), getattr(facts, name + '_crt')
        retry, before = facts.state.get('retry'), self.counts['issued']
        run.asked |= {key.spki}
        count = retry['count'] + 1 if retry and retry['names'] == self.config.domains else 1
        self.write(retry=self.failure(count, RETRY[min(count - 1, 4)]))
        self.state['retry']['server'] = False
        try:
            try:
                crt = self.order(key.spki)
            except Refused as error:
                self.failed = True
                self.counts['failed requests'] += 1
                self.note_failure(count, error.args[0])
                return
            finally:
                if run.skew is None and self.ca_fault[0] != 'away':
                    run.skew = -self.offset
            self.tick()
            if old:
                self.backups.add(old.sha256)
            self.tick()
            setattr(self, name + '_crt', crt)
            before = self.counts['issued']
            self.note_live()
        finally:
            if self.counts['issued'] > before:
                self.lost = self.t
        self.write(retry=None)

    def do_stage(self, run, facts, step):
        run.asked |= {'stage'}
        run.force = ''
        self.write(published=None, seen=None, ttl=None)
        self.staging_key = self.new_key()
        self.counts['keys'] += 1
        self.tick()

    def do_publish(self, run, facts, step):
        self.write(published=self.clock())

    def do_drop(self, run, facts, step):
        self.tick()
        if step.what == 'crt':
            self.backups.add(self.staging_crt.sha256)
        setattr(self, 'staging_' + step.what, None)
        self.tick()

    def do_rename(self, run, facts, step):
        self.keep(step.what)
        self.make_live(step.what)
        run.asked |= {'stage'}
        self.tick()

    def keep(self, ext):
        self.tick()
        self.backups.add(self.live_key.spki if ext == 'key' else self.live_crt.sha256)

    def make_live(self, ext):
        """Give a staged file the live name."""
        if ext == 'key' and self.config.standby == 'yes':
            self.staging_key = self.staging_key._replace(made=self.clock())
        setattr(self, 'live_' + ext, getattr(self, 'staging_' + ext))
        setattr(self, 'staging_' + ext, None)

    def do_unstage(self, run, facts, step):
        run.asked |= {'stage'}
        run.force = ''
        self.keep('key')
        self.keep('crt')
        done = ['key', 'crt']
        if not self.quiet and self.random.random() < .05 * self.heat:
            # Killed between the renames; or a power cut let only the second reach the disk
            done = self.random.choice(([], ['key'], ['crt'], ['key', 'crt']))
        old, new, names = self.live_crt, self.staging_crt, set(self.config.domains)
        if new.not_after < self.t < old.not_after:
            raise Violation('a certificate that has expired replaces one that has not')
        if set(new.names) != names == set(old.names):
            raise Violation('a certificate with other names replaces one with the right ones')
        for ext in done:
            self.make_live(ext)
        self.counts['rollovers'] += 1
        self.note_live()
        if done != ['key', 'crt']:
            self.counts['crashes'] += 1
            raise Killed

    def do_hook(self, run, facts, step):
        hook = step.what
        run.asked |= {hook}
        run.dns = run.served = None
        if self.broken == 'started-is-done':
            self.note_hook(facts, hook)
        self.tick(30)
        mode = self.hook_faults.get(hook, (None, 0))[0]
        if mode == 'before':
            raise Ended
        if mode != 'lies':
            if hook == CERTCHANGE:
                for number in range(len(self.services)):
                    self.restart(number)
            else:
                self.publish(frozenset(keys_of(facts)) - {None})
        elif hook == CERTCHANGE and self.services:
            self.restart(0)     # and not the others
        self.tick(30)
        if mode == 'after':
            raise Ended
        self.note_hook(facts, hook)

    def note_hook(self, facts, hook):
        if hook == CERTCHANGE:
            self.write(certchange=facts.live_crt.sha256)
            return
        known = facts.state.get('keychange') == keys_of(facts) and facts.state.get('published')
        self.write(keychange=keys_of(facts),
                   published=known or self.clock() if staged_pair(facts) else None)

    def do_look(self, run, facts, step):
        unknown = not self.quiet and self.random.random() < .1 * self.heat
        if step.what == 'served':
            wrong = [key for key in self.services if key != self.live_key.spki]
            run.served = ['unknown'] if unknown or wrong else []
            self.tick(10)
            return
        self.tick()
        keys = frozenset(keys_of(facts)) - {None}
        looks = [self.random.choice(self.visible())] + self.servers     # a resolver is a cache
        run.dns = ['unknown'] if unknown or not all(keys <= look for look in looks) else []
        ttl = max(self.ttl if not unknown else 0, facts.state.get('ttl', 0))
        self.tick(10)
        self.write(ttl=ttl, seen=None if run.dns else facts.state.get('seen') or self.clock())

    # -- the world between two runs

    def some_time(self):
        """When a fault that begins now ends: mostly soon."""
        return self.t + self.random.expovariate(1 / self.random.choice((HOUR, DAY, 3 * DAY)))

    def between(self):
        """What may happen in a day."""
        dice, heat = self.random, self.heat
        self.bring_up_to_date()
        if self.ca_fault[1] < self.t:
            self.ca_fault = (None, 0)
            if dice.random() < .03 * heat:
                self.ca_fault = (dice.choice(('away', 'busy', 'invalid', 'lost')), self.some_time())
        if self.offset and self.clock_until < self.t:
            self.offset, self.forbidden = 0.0, 0
        if dice.random() < .3:
            self.restart(dice.randrange(len(self.services)))
        if dice.random() > .25 * heat:
            return
        what = dice.random()
        if what < .1:
            self.note('state lost')
            self.state = {}
            # Nobody remembers what the CA said.
            self.forbidden = 0
        elif what < .5:
            modes = ['before', 'after']
            hook = dice.choice((CERTCHANGE, KEYCHANGE))
            if hook == KEYCHANGE and self.config.tlsa or hook == CERTCHANGE and self.config.served:
                modes.append('lies')
            self.hook_faults[hook] = dice.choice(modes), self.some_time()
        elif what < .6:
            self.jump()
        elif what < .7 and self.config.tlsa and self.staging_key and self.fits() and set(
                self.services) == {self.live_key.spki}:
            self.note('another tool writes the zone')
            self.publish(frozenset([self.live_key.spki]))
        elif what < .75:
            self.config = self.config._replace(domains=dice.choice((
                ['example.org'], ['example.org', 'www.example.org'])))
            self.note('names: %s', self.config.domains)

    def jump(self):
        """The clock goes wrong for a while."""
        self.offset = self.random.choice((-1, 1)) * self.random.choice((
            2 * HOUR, DAY, 3 * DAY, 40 * DAY, 10 * YEAR))
        self.clock_until = self.some_time()
        self.forbidden = 0      # by which clock?
        self.note('clock: %+.1f days', self.offset / DAY)

    def day(self):
        """The world, then cron; now and then the administrator."""
        start = self.t
        self.t += self.random.random() * HOUR
        self.between()
        for hook, (_, until) in list(self.hook_faults.items()):
            if until < self.t:
                del self.hook_faults[hook]
        dice = self.random.random()
        if dice < .004:
            self.note('renew by hand')
            self.by_hand = self.t
            self.run(force='renew')
        elif dice < .007:
            self.note('renew --new-key by hand')
            self.by_hand = self.t
            self.run(force='new-key')
        elif dice < .02:
            self.run(hooks=False)
        else:
            self.run()
        self.t = max(self.t, start + DAY)

    def clear_up(self):
        """The faults stop; two runs later all must be settled."""
        self.quiet = True
        self.ca_fault, self.hook_faults, self.offset = (None, 0), {}, 0.0
        self.t = max(self.t, self.forbidden)
        # Let the zone's servers agree, and the program's own pause be over.
        self.t += 2 * DAY
        self.bring_up_to_date()
        self.run()
        self.t += DAY
        self.run()
        # Time goes on: a renewal, the begin or end of a staging, the first look at DNS for long
        # was not left by a fault.
        for _ in range(10):
            self.t = max(self.t + HOUR + self.ttl, self.forbidden)
            step = self.run()
            if self.forbidden < self.t and not (set(self.steps) & {'stage', 'unstage', 'request'}
                                                or {'look', 'hook'} <= set(self.steps)):
                break
        facts = self.facts(SimpleNamespace(asked=frozenset(), force='', hooks=True, skew=0,
                                           dns=None, served=None))
        owed = hooks_owed(self.config, facts)
        due = [name for name in ('live', 'staging') if request_due(
            self.config, facts, getattr(facts, name + '_key'), getattr(facts, name + '_crt'),
            self.t)[0]]
        # To look at DNS and, then, to wait is all that may be left.
        if step is None or owed or due or not self.fits() or self.failed or (
                self.staging_crt and not self.staging_key) or (
                set(self.steps) - ({'clock', 'look'} if self.config.tlsa and self.staging_key
                                   else set())):
            raise Violation('not settled two runs after the faults: %s, owed %s, due %s, steps %s'
                            % (step and step.verb, owed, due, ' '.join(self.steps)))
        if self.kind != 'plain' and set(self.services) != {self.live_key.spki}:
            raise Violation('settled, but a service does not use the live key')
        if self.live_crt.not_after < self.t:
            raise Violation('settled, but the certificate has expired')
        self.counts['settled'] += 1
        self.quiet = False

    def play(self, seconds=LIFE):
        """Live so long, or a year without any fault. Raises Violation."""
        end = self.t + min(seconds, LIFE if self.heat else YEAR)
        self.run()
        while self.t < end:
            for _ in range(self.random.randrange(20, 200)):
                self.day()
            self.clear_up()


# ---- many lives ---------------------------------------------------------------------------------

def simulate(years, seed, broken=None, seconds=None):
    """Play lives with seeds from `seed` on, for so many virtual years, or so many seconds of ours.

    Returns (virtual years, Counter of what happened, None or (seed of the life, Violation)).
    """
    counts, played = collections.Counter(), 0
    deadline = time.monotonic() + (seconds or 1e9)
    while played < years and time.monotonic() < deadline:
        life = Life(seed, broken)
        start = life.t
        try:
            life.play(min(LIFE, (years - played) * YEAR))
        except Violation as violation:
            return played, counts + life.counts, (seed, violation)
        counts, played, seed = counts + life.counts, played + (life.t - start) / YEAR, seed + 1
    return played, counts, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--years', type=float, default=300, help='virtual years to play')
    parser.add_argument('--seed', type=int, default=1, help='of the first life')
    parser.add_argument('--seconds', type=float, help='of our time, at most')
    parser.add_argument('--break', dest='broken', choices=sorted(BREAKS), metavar='NAME',
                        help='a design not taken: ' + ', '.join(sorted(BREAKS)))
    parser.add_argument('--trace', action='store_true', help='tell the one life of the seed')
    args = parser.parse_args()
    if args.trace:
        life = Life(args.seed, args.broken, print)
        print(life.kind, life.config, 'TTL', life.ttl, 'heat', life.heat)
        try:
            life.play()
        except Violation as violation:
            print(violation)
            return 1
        return 0
    start = time.monotonic()
    played, counts, failure = simulate(args.years, args.seed, args.broken, args.seconds)
    print('%.0f virtual years in %.1f s: %s' % (played, time.monotonic() - start, ', '.join(
        '%d %s' % (number, name) for name, number in sorted(counts.items()))))
    if failure:
        print('seed %d: %s\nto see it: python3 tests/simulation.py --seed %d --trace%s' % (
            *failure, failure[0], ' --break ' + args.broken if args.broken else ''))
    return 1 if failure else 0


if __name__ == '__main__':
    sys.exit(main())
