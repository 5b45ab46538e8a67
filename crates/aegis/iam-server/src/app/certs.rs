//! The authority: new certificates for identities that show their current one.

use std::time::SystemTime;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::pki::{LEAF_LIFETIME, LeafRequest};
use iam_client::OpContext;
use iam_client::wire::RenewAnswer;

use super::{Acting, Aegis, Revised, invalid};
use crate::store::Commit;

/// Longest signing request, in bytes.
const MAX_CSR: usize = 8192;

impl Aegis {
    /// A new certificate for exactly the identity that asks, which must have shown its certificate. Of the request only
    /// the key is used; every name comes from the verified certificate.
    ///
    /// # Errors
    /// 403 for callers without a certificate, 400 for a request that is none.
    pub async fn renew_certificate(
        &self,
        context: &OpContext,
        csr: &str,
    ) -> Result<Revised<RenewAnswer>, ApiError> {
        let Some(workload) = context.actor().workload() else {
            return Err(ApiError::new(
                ErrorKind::PermissionDenied,
                "only holders of a certificate can renew it",
            ));
        };
        if csr.len() > MAX_CSR {
            return Err(invalid("the signing request is too long"));
        }
        let path = workload.to_string();
        let request = LeafRequest {
            trust_domain: self.settings().domain.clone(),
            path: path.clone(),
            dns: vec!["localhost".to_owned()],
            ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
            lifetime: LEAF_LIFETIME,
        };
        let certificate = self
            .inner
            .authority
            .sign_csr(csr, &request, SystemTime::now())
            .map_err(|error| invalid("this is not a signing request (PKCS#10, PEM)").source(error))?;
        // The record comes first: no certificate leaves without one.
        let by = Acting::of(context);
        let commit = Commit::default().audit(&by, "certificate.renew", &format!("workload/{path}"), "");
        let revision = self.store().commit(commit).await?;
        let ca = self.inner.authority.cert_pem().to_owned();
        Ok(Revised {
            value: RenewAnswer { certificate, ca },
            revision,
        })
    }
}
