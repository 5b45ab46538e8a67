//! What the REST interface does. Nothing here runs without the caller's [`OpContext`].

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::extract::FromRef;
use chainfire_client::{Client, Compare, Op, Txn};
use flashdns_client::types::{Zone, ZoneKind, ZoneList};
use flashdns_core::{DnsName, RrSet, Rtype, Snapshot, text};
use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::PageToken;
use iam_client::{Authorizer, Denied, OpContext, ResourceRef};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::wire::{ListQuery, NewRecord, Record, RecordList, Source};
use crate::{
    config::Zones,
    keeper::{Event, Listed, NamePage},
    keys::Keyring,
    record,
    seal::Sealer,
};

/// Names on a page of records.
const DEFAULT_PAGE: u32 = 500;
const MAX_PAGE: u32 = 1000;
/// Times a change is tried again when others change the same name meanwhile.
pub(super) const ATTEMPTS: usize = 8;
/// Longest wait for this server to serve what was written; the write stands either way.
const SERVE_DEADLINE: Duration = Duration::from_secs(1);
/// Stored names of one zone, so that a tenant cannot fill the store.
pub(crate) const MAX_NAMES_PER_ZONE: usize = 10_000;
/// Types at one name.
pub(crate) const MAX_SETS_PER_NAME: usize = 64;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) zones: Arc<Zones>,
    pub(crate) store: Client,
    pub(crate) keeper: mpsc::Sender<Event>,
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) authorizer: Authorizer,
    /// Places for zone files that are read.
    pub(crate) readers: Arc<Semaphore>,
    pub(crate) keys: Arc<ArcSwap<Keyring>>,
    /// Seals secrets; none: there are no keys.
    pub(crate) sealer: Option<Arc<Sealer>>,
}

impl App {
    pub(crate) fn readers() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(super::files::MAX_READERS))
    }
}

impl FromRef<App> for Authorizer {
    fn from_ref(app: &App) -> Self {
        app.authorizer.clone()
    }
}

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidArgument, message)
}

pub(super) fn store_error(error: chainfire_client::Error) -> ApiError {
    let message = match error {
        chainfire_client::Error::UnknownOutcome { .. } => {
            "the store did not say whether the change was made; list the records before trying again"
        }
        _ => "the store does not take changes at the moment; names are still answered",
    };
    let kind = match error.kind() {
        ErrorKind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        ErrorKind::Unavailable => ErrorKind::Unavailable,
        _ => return ApiError::internal("changing the record", error),
    };
    ApiError::new(kind, message)
        .hint("`hearth status` shows whether Chainfire answers")
        .source(error)
}

impl App {
    pub(super) fn list_zones(&self, ctx: &OpContext) -> Result<ZoneList, ApiError> {
        let serial = self.published.load().serial();
        let zone = |name: &DnsName, kind, project| Zone {
            name: name.to_string(),
            kind,
            project,
            serial,
        };
        let may = |resource: &ResourceRef| match ctx.check("dns.zone.list", resource) {
            Ok(_) => Ok(true),
            Err(Denied::Stale) => Err(ApiError::from(Denied::Stale)),
            Err(Denied::Forbidden { .. } | Denied::Invisible) => Ok(false),
        };
        let mut zones = Vec::new();
        if may(&ResourceRef::Root)? {
            zones.push(zone(&self.zones.domain, ZoneKind::Domain, None));
            zones.extend(
                self.zones
                    .reverse
                    .iter()
                    .map(|name| zone(name, ZoneKind::Reverse, None)),
            );
        }
        for project in ctx.authorizer().projects_visible_to(ctx.actor()) {
            // A project whose zone's name would be too long for DNS has none.
            if let Ok(name) = self.zones.project_zone(&project.name)
                && may(&ResourceRef::Project(project.id))?
            {
                zones.push(zone(&name, ZoneKind::Project, Some(project.name)));
            }
        }
        zones.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ZoneList { zones })
    }

    /// The zone of that name, when the caller may do `action` in it.
    pub(super) fn zone(
        &self,
        ctx: &OpContext,
        action: &'static str,
        name: &str,
    ) -> Result<DnsName, ApiError> {
        let zone: DnsName = name
            .parse()
            .map_err(|error| invalid(format!("`{name}` is not a zone's name: {error}")))?;
        if zone == self.zones.domain || self.zones.reverse.contains(&zone) {
            ctx.check(action, &ResourceRef::Root)?;
            return Ok(zone);
        }
        let project = self.zones.project_of_zone(&zone).ok_or(Denied::Invisible)?;
        ctx.authorizer().check_project(ctx.actor(), action, &project)?;
        Ok(zone)
    }

    /// Asks the keeper for names of a zone.
    pub(crate) async fn names(
        &self,
        zone: &DnsName,
        after: Option<String>,
        limit: usize,
    ) -> Result<NamePage, ApiError> {
        let (reply, answer) = oneshot::channel();
        let question = Event::List {
            zone: zone.clone(),
            after,
            limit,
            reply,
        };
        let stopping = || ApiError::new(ErrorKind::Unavailable, "the server is stopping");
        self.keeper.send(question).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    pub(super) async fn list_records(
        &self,
        ctx: &OpContext,
        zone: &str,
        query: ListQuery,
    ) -> Result<RecordList, ApiError> {
        let zone = self.zone(ctx, "dns.record.list", zone)?;
        let limit = query.limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(invalid(format!("`limit` must be 1 to {MAX_PAGE}")));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let after = query.page.map(|page| page.position().to_owned());
        let page = self.names(&zone, after, limit).await?;
        let last = page.names.last().map(|listed| listed.name.to_string());
        let next_page = last
            .filter(|_| page.more)
            .map(|last| PageToken::after(&last))
            .transpose();
        Ok(RecordList {
            records: page.names.iter().flat_map(records).collect(),
            next_page: next_page.map_err(|error| ApiError::internal("paging", error))?,
        })
    }

    pub(super) async fn create_record(
        &self,
        ctx: &OpContext,
        zone: &str,
        new: NewRecord,
    ) -> Result<Record, ApiError> {
        let zone = self.zone(ctx, "dns.record.create", zone)?;
        let name = self.name_in(&zone, &new.name)?;
        let rtype = text::parse_type(&new.rtype).map_err(|error| invalid(error.to_string()))?;
        self.refuse_impossible(&zone, &name, rtype)?;
        let rdata = text::parse_rdata(rtype, &new.data).map_err(|error| invalid(error.to_string()))?;
        let data = text::show_rdata(rtype, &rdata);
        let revision = self
            .change(&zone, &name, |sets| {
                add(sets, &name, rtype, new.ttl_s, rdata.clone())
            })
            .await?;
        let rtype = text::show_type(rtype);
        tracing::info!(
            actor = ctx.actor().name(), request = ctx.request_id(), %name, rtype, data, revision,
            "record created"
        );
        self.served(revision).await;
        Ok(Record {
            name: name.to_string(),
            rtype,
            ttl_s: new.ttl_s,
            data,
            source: Source::Stored,
        })
    }

    pub(super) async fn delete_record(
        &self,
        ctx: &OpContext,
        zone: &str,
        name: &str,
        rtype: &str,
        data: Option<&str>,
    ) -> Result<(), ApiError> {
        let zone = self.zone(ctx, "dns.record.delete", zone)?;
        let name = self.name_in(&zone, name)?;
        let rtype = text::parse_type(rtype).map_err(|error| invalid(error.to_string()))?;
        let rdata = data.map(|data| text::parse_rdata(rtype, data)).transpose();
        let rdata = rdata.map_err(|error| invalid(error.to_string()))?;
        let revision = self
            .change(&zone, &name, |sets| remove(sets, &name, rtype, rdata.as_deref()))
            .await?;
        let rtype = text::show_type(rtype);
        tracing::info!(
            actor = ctx.actor().name(), request = ctx.request_id(), %name, rtype, data, revision,
            "record deleted"
        );
        self.served(revision).await;
        Ok(())
    }

    /// A name that belongs to this zone and no other.
    fn name_in(&self, zone: &DnsName, name: &str) -> Result<DnsName, ApiError> {
        let parsed: DnsName = name
            .parse()
            .map_err(|error| invalid(format!("`{name}`: {error}")))?;
        match self.zones.zone_of(&parsed) {
            Some(owner) if owner == *zone => Ok(parsed),
            Some(owner) if parsed.is_within(zone) || *zone == self.zones.domain => {
                Err(invalid(format!("`{parsed}` belongs to the zone `{owner}`"))
                    .hint("names two or more labels below the domain belong to a project's zone"))
            }
            _ => Err(invalid(format!("`{parsed}` is not in the zone `{zone}`"))
                .hint(format!("write the whole name, such as `www.{zone}`"))),
        }
    }

    /// Refuses records that the server makes itself or that cannot be answered with.
    fn refuse_impossible(&self, zone: &DnsName, name: &DnsName, rtype: Rtype) -> Result<(), ApiError> {
        self.zones.refuse(zone, name, rtype).map_err(invalid)
    }

    /// Changes a name's sets by compare-and-swap; returns the revision of the change.
    async fn change(
        &self,
        zone: &DnsName,
        name: &DnsName,
        edit: impl Fn(&mut Vec<RrSet>) -> Result<(), ApiError>,
    ) -> Result<i64, ApiError> {
        let key = record::key(zone, name);
        for _ in 0..ATTEMPTS {
            let found = self.store.get(&key).await.map_err(store_error)?;
            let mut sets = match &found {
                Some(kv) => record::parse_value(&kv.value)
                    .map_err(|error| ApiError::internal("reading the stored name", error))?,
                None => Vec::new(),
            };
            edit(&mut sets)?;
            if found.is_none() && self.names(zone, None, 0).await?.stored >= MAX_NAMES_PER_ZONE {
                return Err(ApiError::new(
                    ErrorKind::ResourceExhausted,
                    format!("the zone `{zone}` has {MAX_NAMES_PER_ZONE} names, more are not stored"),
                )
                .hint("delete records that are not needed"));
            }
            let unchanged = Compare::mod_revision(&key).equal(found.map_or(0, |kv| kv.mod_revision));
            let op = if sets.is_empty() {
                Op::delete(&key)
            } else {
                let value =
                    record::value(&sets).map_err(|error| ApiError::internal("storing the name", error))?;
                Op::put(&key, value)
            };
            let done = self
                .store
                .txn(Txn::new().when([unchanged]).then([op]))
                .await
                .map_err(store_error)?;
            if done.succeeded {
                return Ok(done.revision);
            }
        }
        Err(ApiError::new(ErrorKind::Conflict, format!("others keep changing `{name}`")).hint("try again"))
    }

    /// Waits a moment for this server to serve a revision, so that whoever wrote can look.
    pub(crate) async fn served(&self, revision: i64) {
        let (reply, served) = oneshot::channel();
        if self.keeper.send(Event::Served { revision, reply }).await.is_ok() {
            // Late or not: the write stands, and every server follows.
            let _ = tokio::time::timeout(SERVE_DEADLINE, served).await;
        }
    }
}

fn records(listed: &Listed) -> impl Iterator<Item = Record> {
    let source = if listed.is_vm { Source::Vm } else { Source::Stored };
    listed.sets.iter().flat_map(move |set| {
        set.rdatas().iter().map(move |rdata| Record {
            name: listed.name.to_string(),
            rtype: text::show_type(set.rtype()),
            ttl_s: set.ttl_s(),
            data: text::show_rdata(set.rtype(), rdata),
            source,
        })
    })
}

fn add(
    sets: &mut Vec<RrSet>,
    name: &DnsName,
    rtype: Rtype,
    ttl_s: u32,
    rdata: Box<[u8]>,
) -> Result<(), ApiError> {
    let shown = text::show_type(rtype);
    let at = sets.iter().position(|set| set.rtype() == rtype);
    let mut rdatas = at
        .and_then(|at| sets.get(at))
        .map_or_else(Vec::new, |set| set.rdatas().to_vec());
    if rdatas.contains(&rdata) {
        return Err(ApiError::new(
            ErrorKind::AlreadyExists,
            format!("`{name}` has this {shown} record already"),
        ));
    }
    let has_alias = sets.iter().any(|set| set.rtype() == Rtype::CNAME);
    if (rtype == Rtype::CNAME && !sets.is_empty()) || (has_alias && rtype != Rtype::CNAME) {
        return Err(ApiError::new(
            ErrorKind::FailedPrecondition,
            format!("at `{name}` a CNAME and other records would stand together"),
        )
        .hint("delete the records that stand there first (RFC 1034, 3.6.2)"));
    }
    rdatas.push(rdata);
    let set = RrSet::new(rtype, ttl_s, rdatas).map_err(|error| {
        invalid(format!(
            "this {shown} record cannot be added to `{name}`: {error}"
        ))
    })?;
    if at.is_none() && sets.len() >= MAX_SETS_PER_NAME {
        return Err(invalid(format!(
            "`{name}` has {MAX_SETS_PER_NAME} types, more are not stored"
        )));
    }
    sets.retain(|old| old.rtype() != rtype);
    sets.push(set);
    Ok(())
}

fn remove(sets: &mut Vec<RrSet>, name: &DnsName, rtype: Rtype, rdata: Option<&[u8]>) -> Result<(), ApiError> {
    let missing = || {
        let shown = text::show_type(rtype);
        ApiError::new(
            ErrorKind::NotFound,
            format!("`{name}` has no such {shown} record that was stored"),
        )
        .hint("records of running VMs go with the VM")
    };
    let at = sets
        .iter()
        .position(|set| set.rtype() == rtype)
        .ok_or_else(missing)?;
    let old = sets.swap_remove(at);
    let Some(rdata) = rdata else { return Ok(()) };
    let mut rdatas = old.rdatas().to_vec();
    let found = rdatas
        .iter()
        .position(|known| **known == *rdata)
        .ok_or_else(missing)?;
    rdatas.swap_remove(found);
    if !rdatas.is_empty() {
        let rest = RrSet::new(rtype, old.ttl_s(), rdatas);
        sets.push(rest.map_err(|error| ApiError::internal("deleting the record", error))?);
    }
    Ok(())
}
