//! The member's own services, called within the process with the rights of whoever is being served.
//!
//! What is built from other calls (locks, elections, the JSON gateway) goes through the same front door as a client:
//! whatever the services check of a caller, they check here too.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use chainfire_client::wire::etcdserverpb::{
    kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
};
use http::{Extensions, HeaderMap};
use tonic::{Request, body::Body, codegen::Service, service::Routes};

/// What of a caller's metadata its rights and wishes depend on: tokens, and whether it requires a leader.
pub(crate) const CARRIED: [&str; 3] = ["token", "authorization", "hasleader"];

type RoutesFuture = <Routes as Service<http::Request<Body>>>::Future;

/// The services, for one caller.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    routes: Routes,
    extensions: Extensions,
    headers: HeaderMap,
}

impl Local {
    /// The services as the sender of `request` may use them.
    pub(crate) fn of<T>(routes: &Routes, request: &Request<T>) -> Local {
        let mut headers = HeaderMap::new();
        for name in CARRIED {
            if let Some(value) = request.metadata().as_ref().get(name) {
                headers.insert(name, value.clone());
            }
        }
        Local {
            routes: routes.clone(),
            extensions: request.extensions().clone(),
            headers,
        }
    }

    // What came in over the network was measured there; what the services answer is as large as it is.

    pub(crate) fn kv(&self) -> KvClient<Local> {
        KvClient::new(self.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn watch(&self) -> WatchClient<Local> {
        WatchClient::new(self.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Local> {
        LeaseClient::new(self.clone())
    }
}

impl Service<http::Request<Body>> for Local {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = RoutesFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> RoutesFuture {
        *request.extensions_mut() = self.extensions.clone();
        request.headers_mut().extend(self.headers.clone());
        self.routes.call(request)
    }
}
