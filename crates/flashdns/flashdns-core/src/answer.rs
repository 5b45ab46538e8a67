//! The answer to one query: RFC 1034 section 4.3.2 with RFC 2308, 4592, 6604, 6672, 6891, 8482 and 9471.

use std::cell::OnceCell;

use crate::{
    cookie::Cookies,
    limits::{
        MAX_ADDITIONAL_LOOKUPS, MAX_CNAME_CHAIN, MAX_NAME, MAX_TCP_REPLY, MAX_UDP_REPLY, PLAIN_UDP_REPLY,
    },
    message::{self, Edns, Flags, Question, Section, Writer, rcode},
    node::{Node, Set},
    rr::{Rtype, target},
    tree::{Snapshot, Walk},
};

/// How a query came: decides how large its reply may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram; the client's EDNS size counts, within 512 and [`MAX_UDP_REPLY`] bytes.
    Udp,
    /// A stream; up to [`MAX_TCP_REPLY`] bytes.
    Tcp,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is sent: too short for a header, or itself a response (answering those makes two servers
    /// talk to each other for ever).
    Silence,
    /// The reply is in the buffer.
    Reply {
        /// Response code, the extended bits included.
        rcode: u16,
        /// Type asked for, where the question could be read.
        rtype: Option<Rtype>,
    },
}

/// How a query came, and what its reply must leave room for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'c> {
    /// How it came.
    pub transport: Transport,
    /// Bytes to leave of what the client takes, for a signature.
    pub room: usize,
    /// What cookies are made with; none: cookies are ignored.
    pub cookies: Option<Cookies<'c>>,
}

/// Answers one query; the reply replaces what is in `out`. Never panics, never fails.
pub fn answer(snapshot: &Snapshot, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
    let ask = Ask {
        transport,
        room: 0,
        cookies: None,
    };
    answer_to(snapshot, query, &ask, out).0
}

/// As [`answer()`]; also tells whether the client returned a good cookie, and so has the address that it says it has.
pub fn answer_to(snapshot: &Snapshot, query: &[u8], ask: &Ask<'_>, out: &mut Vec<u8>) -> (Outcome, bool) {
    out.clear();
    let Some((id, flags)) = message::header(query) else {
        return (Outcome::Silence, false);
    };
    if flags.is_response() {
        return (Outcome::Silence, false);
    }
    let reply = |rcode, rtype| Outcome::Reply { rcode, rtype };
    // Replies without a record fit every transport.
    let plain = PLAIN_UDP_REPLY;
    if flags.opcode() != 0 {
        Writer::new(out, plain, id, flags, None, None).finish(rcode::NOTIMP);
        return (reply(rcode::NOTIMP, None), false);
    }
    let (question, edns) = match message::body(query) {
        Ok(parts) => parts,
        Err(question) => {
            Writer::new(out, plain, id, flags, question, None).finish(rcode::FORMERR);
            return (reply(rcode::FORMERR, question.map(|q| q.rtype)), false);
        }
    };
    let cookie = edns.and_then(|edns| edns.cookie).zip(ask.cookies);
    let is_proven = cookie.is_some_and(|(sent, cookies)| cookies.is_good(sent));
    let limit = limit(ask.transport, edns).saturating_sub(ask.room).max(MIN_ROOM);
    let writer = Writer::new(out, limit, id, flags, Some(question), edns)
        .with_cookie(cookie.map(|(sent, cookies)| cookies.make(sent)));
    let made = Made::default();
    let mut responder = Responder {
        snapshot,
        question,
        writer,
        made: &made,
    };
    let rcode = responder.respond(edns);
    responder.writer.finish(rcode);
    (reply(rcode, Some(question.rtype)), is_proven)
}

/// Writes the reply to a query that is not answered over UDP: with TC, so that the client comes over TCP.
pub fn truncated(query: &[u8], out: &mut Vec<u8>) {
    message::truncated(query, out);
}

/// Room that a reply has at least: header, the longest question, OPT and a cookie.
const MIN_ROOM: usize = 12 + MAX_NAME + 4 + 11 + 28;

fn limit(transport: Transport, edns: Option<Edns<'_>>) -> usize {
    match (transport, edns) {
        (Transport::Tcp, _) => MAX_TCP_REPLY,
        (Transport::Udp, None) => PLAIN_UDP_REPLY,
        (Transport::Udp, Some(edns)) => usize::from(edns.udp_size).clamp(PLAIN_UDP_REPLY, MAX_UDP_REPLY),
    }
}

/// Names made by DNAMEs: at most one for each step of a chain.
type Made = [OnceCell<Box<[u8]>>; MAX_CNAME_CHAIN];

/// The truncation flag is set; nothing more goes into the reply.
struct Truncated;

struct Responder<'o, 'a> {
    snapshot: &'a Snapshot,
    question: Question<'a>,
    writer: Writer<'o, 'a>,
    made: &'a Made,
}

/// One name on the way from the question along its CNAMEs.
struct Step<'a> {
    /// The name as it was written where it came from.
    name: &'a [u8],
    lower: [u8; MAX_NAME],
    walk: Walk<'a>,
    /// Apex of the zone.
    zone: Node<'a>,
    /// Where the zone's apex starts in the name.
    apex: usize,
    /// Only the parent's side of a zone cut counts: a DS question at the apex of a zone served here too.
    parent_side: bool,
}

impl<'a> Step<'a> {
    fn lower(&self) -> &[u8] {
        self.lower.get(..self.name.len()).unwrap_or(&[])
    }

    /// The tail of the name that starts at `at`.
    fn tail(&self, at: usize) -> &'a [u8] {
        self.name.get(at..).unwrap_or(&[0])
    }
}

impl<'a> Responder<'_, 'a> {
    fn respond(&mut self, edns: Option<Edns<'_>>) -> u16 {
        const CLASS_IN: u16 = 1;
        if edns.is_some_and(|edns| edns.version != 0) {
            return rcode::BADVERS;
        }
        match self.question.rtype {
            // No transfers: whoever asks is not known to be a secondary.
            Rtype::AXFR | Rtype::IXFR => return rcode::REFUSED,
            Rtype::ANY => {}
            rtype if rtype.is_meta() => return rcode::NOTIMP,
            _ => {}
        }
        if self.question.class != CLASS_IN {
            return rcode::REFUSED;
        }
        let (rcode, done) = self.follow();
        if done.is_err() {
            self.writer.truncate();
        }
        rcode
    }

    /// Follows CNAMEs and DNAMEs from the question to its end. They are followed within one zone only: what another
    /// zone says of the target is for the client to ask.
    fn follow(&mut self) -> (u16, Result<(), Truncated>) {
        let mut name = self.question.name;
        let mut zone: Option<Node<'a>> = None;
        let mut seen: [&[u8]; MAX_CNAME_CHAIN] = [&[]; MAX_CNAME_CHAIN];
        for place in 0..MAX_CNAME_CHAIN {
            let Some(step) = self.step(name) else {
                return (
                    if zone.is_none() {
                        rcode::REFUSED
                    } else {
                        rcode::NOERROR
                    },
                    Ok(()),
                );
            };
            if zone.is_some_and(|zone| !zone.is(step.zone)) {
                break;
            }
            zone = Some(step.zone);
            match self.at(&step) {
                Found::End(rcode, result) => return (rcode, result),
                Found::Alias(target) => {
                    if let Some(seen) = seen.get_mut(place) {
                        *seen = name;
                    }
                    name = target;
                }
            }
            if seen.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                break;
            }
        }
        (rcode::NOERROR, Ok(()))
    }

    fn step(&self, name: &'a [u8]) -> Option<Step<'a>> {
        let mut lower = [0; MAX_NAME];
        let filled = lower.get_mut(..name.len())?;
        filled.copy_from_slice(name);
        filled.make_ascii_lowercase();
        let walk = self.snapshot.walk(filled);
        let (zone, apex) = walk.zone?;
        let above = walk
            .parent
            .filter(|_| self.question.rtype == Rtype::DS && apex == 0);
        let parent_side = above.is_some();
        let (zone, apex) = above.unwrap_or((zone, apex));
        Some(Step {
            name,
            lower,
            walk,
            zone,
            apex,
            parent_side,
        })
    }

    /// Writes what is to be said at one name.
    fn at(&mut self, step: &Step<'a>) -> Found<'a> {
        let asks_ds = self.question.rtype == Rtype::DS;
        if let Some((cut, start)) = step.walk.cut
            && !(asks_ds && start == 0)
        {
            return Found::End(rcode::NOERROR, self.referral(step, cut, start));
        }
        self.writer.set(Flags::AA);
        if let Some((owner, start)) = step.walk.redirect.filter(|_| !step.parent_side) {
            return self.redirect(step, owner, start);
        }
        let node = step.walk.exact.or_else(|| self.wildcard(step));
        let Some(node) = node else {
            return Found::End(rcode::NXDOMAIN, self.negative(step));
        };
        let wanted = self.question.rtype;
        if let Some(alias) = node.set(Rtype::CNAME)
            && !matches!(wanted, Rtype::CNAME | Rtype::ANY)
        {
            return match (
                self.writer.put_set(Section::Answer, step.name, alias),
                alias.rdatas().next(),
            ) {
                (Ok(()), Some(target)) => Found::Alias(target),
                _ => Found::End(rcode::NOERROR, Err(Truncated)),
            };
        }
        let set = match wanted {
            // RFC 8482, 4.1: one record set, the smallest, so that ANY is no lever for attacks.
            Rtype::ANY => node.sets().min_by_key(|set| set.weight()),
            wanted => node.set(wanted),
        };
        let result = match set {
            Some(set) => self.positive(step, set),
            None => self.negative(step),
        };
        Found::End(rcode::NOERROR, result)
    }

    /// A name below a DNAME: the DNAME, and the CNAME that it stands for (RFC 6672, 3.2 and 3.3).
    fn redirect(&mut self, step: &Step<'a>, owner: Node<'a>, start: usize) -> Found<'a> {
        let truncated = Found::End(rcode::NOERROR, Err(Truncated));
        let Some(set) = owner.set(Rtype::DNAME) else {
            return truncated;
        };
        let (Some(target), Some(prefix)) = (set.rdatas().next(), step.name.get(..start)) else {
            return truncated;
        };
        if self
            .writer
            .put_set(Section::Answer, step.tail(start), set)
            .is_err()
        {
            return truncated;
        }
        if prefix.len() + target.len() > MAX_NAME {
            return Found::End(rcode::YXDOMAIN, Ok(()));
        }
        let free = self.made.iter().find(|cell| cell.get().is_none());
        let Some(name) = free.map(|cell| cell.get_or_init(|| [prefix, target].concat().into())) else {
            return Found::End(rcode::NOERROR, Ok(()));
        };
        if self
            .writer
            .put(Section::Answer, step.name, Rtype::CNAME, set.ttl_s, name)
            .is_err()
        {
            return truncated;
        }
        // The CNAME is what was asked for; and a DNAME into its own subtree only makes names longer.
        let is_asked = self.question.rtype == Rtype::CNAME;
        let is_loop = target
            .len()
            .checked_sub(step.name.len() - start)
            .is_some_and(|at| {
                message::starts_label(target, at)
                    && target
                        .get(at..)
                        .is_some_and(|tail| tail.eq_ignore_ascii_case(step.tail(start)))
            });
        if is_asked || is_loop {
            return Found::End(rcode::NOERROR, Ok(()));
        }
        Found::Alias(name)
    }

    /// RFC 4592, 3.3.1: the wildcard directly below the closest encloser, and no other.
    fn wildcard(&self, step: &Step<'a>) -> Option<Node<'a>> {
        let mut wire = [0; MAX_NAME + 2];
        let encloser = step.lower().get(step.walk.encloser..)?;
        let wire = wire.get_mut(..encloser.len() + 2)?;
        let (star, rest) = wire.split_at_mut(2);
        star.copy_from_slice(b"\x01*");
        rest.copy_from_slice(encloser);
        self.snapshot.node(wire)
    }

    fn positive(&mut self, step: &Step<'a>, set: Set<'a>) -> Result<(), Truncated> {
        self.writer
            .put_set(Section::Answer, step.name, set)
            .map_err(|_| Truncated)?;
        if set.rtype == Rtype::SOA {
            self.writer.set_last_serial(self.snapshot.serial);
        }
        self.addresses(step, set, None);
        Ok(())
    }

    /// NODATA or NXDOMAIN: the SOA tells how long that may be remembered (RFC 2308, 3).
    fn negative(&mut self, step: &Step<'a>) -> Result<(), Truncated> {
        let Some(soa) = step.zone.set(Rtype::SOA) else {
            return Ok(());
        };
        let Some(rdata) = soa.rdatas().next() else {
            return Ok(());
        };
        let minimum = rdata.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let ttl_s = soa.ttl_s.min(minimum);
        self.writer
            .put(Section::Authority, step.tail(step.apex), Rtype::SOA, ttl_s, rdata)
            .map_err(|_| Truncated)?;
        self.writer.set_last_serial(self.snapshot.serial);
        Ok(())
    }

    /// A name at or below a zone cut: the cut's NS and their addresses (RFC 1034, 4.3.2, 3b).
    fn referral(&mut self, step: &Step<'a>, cut: Node<'a>, start: usize) -> Result<(), Truncated> {
        let Some(servers) = cut.set(Rtype::NS) else {
            return Ok(());
        };
        self.writer
            .put_set(Section::Authority, step.tail(start), servers)
            .map_err(|_| Truncated)?;
        if self.addresses(step, servers, Some(start)) {
            Ok(())
        } else {
            Err(Truncated)
        }
    }

    /// Adds the addresses of a set's targets, as far as this zone knows them. Returns false when an
    /// address did not fit without which the cut at `cut` cannot be followed: RFC 9471, 3.1 wants TC then.
    fn addresses(&mut self, step: &Step<'a>, set: Set<'a>, cut: Option<usize>) -> bool {
        let targets = set.rdatas().filter_map(|rdata| target(set.rtype, rdata));
        for name in targets.take(MAX_ADDITIONAL_LOOKUPS) {
            let found = self.step(name);
            // What lies below a DNAME is not there (RFC 6672, 2.4).
            let is_here = |found: &Step<'_>| found.zone.is(step.zone) && found.walk.redirect.is_none();
            let Some(found) = found.filter(is_here) else {
                continue;
            };
            let needed = cut.is_some_and(|start| {
                step.lower()
                    .get(start..)
                    .is_some_and(|cut| found.lower().ends_with(cut))
            });
            let below_cut = found.walk.cut.is_some();
            let node = found
                .walk
                .exact
                .or_else(|| if below_cut { None } else { self.wildcard(&found) });
            let Some(node) = node else { continue };
            for rtype in [Rtype::A, Rtype::AAAA] {
                if let Some(set) = node.set(rtype)
                    && self.writer.put_set(Section::Additional, name, set).is_err()
                {
                    return !needed;
                }
            }
        }
        true
    }
}

enum Found<'a> {
    End(u16, Result<(), Truncated>),
    Alias(&'a [u8]),
}
