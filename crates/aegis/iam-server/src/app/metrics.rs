//! What Aegis counts. Names and help texts stand here and nowhere else.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

type Labels = [(&'static str, &'static str); 1];

/// The counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    sign_ins: Family<Labels, Counter>,
    changes: Family<Labels, Counter>,
    sessions_ended: Family<Labels, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "aegis_sign_ins",
            "Passwords checked, by outcome",
            self.sign_ins.clone(),
        );
        registry.register(
            "aegis_changes",
            "Changes of rights, by permission used",
            self.changes.clone(),
        );
        registry.register(
            "aegis_sessions_ended",
            "Sessions ended before their time, by reason; session.refresh-reuse is a theft or a defective client",
            self.sessions_ended.clone(),
        );
    }

    pub(super) fn sign_in(&self, succeeded: bool) {
        let outcome = if succeeded { "ok" } else { "refused" };
        self.sign_ins.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn changed(&self, action: &'static str) {
        self.changes.get_or_create(&[("action", action)]).inc();
    }

    pub(super) fn session_ended(&self, why: &'static str) {
        self.sessions_ended.get_or_create(&[("why", why)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_with_its_help() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.sign_in(false);
        metrics.changed("iam.user.create");
        metrics.session_ended("session.revoke");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "aegis_sign_ins_total{outcome=\"refused\"} 1",
            "aegis_changes_total{action=\"iam.user.create\"} 1",
            "aegis_sessions_ended_total{why=\"session.revoke\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# HELP").count(), 3);
    }
}
