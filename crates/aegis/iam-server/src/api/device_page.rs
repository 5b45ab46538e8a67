//! The page on which a person lets a device in.
//!
//! There is no cookie: every decision carries the name and the password itself, so a request that another site makes
//! the browser send has nothing to decide with. The Origin is checked all the same. No script, no foreign resource.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_service::error::{ErrorKind, http_status};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{BodyError, Caller, Form, Query};
use super::oauth::no_store;
use crate::app::{Aegis, Decision};

/// The code, when the person followed the complete address.
#[derive(Debug, Deserialize)]
pub(super) struct CodeQuery {
    user_code: Option<String>,
}

/// The person's decision.
#[derive(Deserialize, Serialize, ToSchema)]
pub(super) struct DecisionForm {
    user_code: String,
    username: String,
    password: String,
    /// `approve` or `deny`.
    decision: String,
}

const POLICY: &str = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1>\n{body}</body></html>\n"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    no_store((status, headers, page).into_response())
}

fn form(status: StatusCode, code: &str, notice: &str) -> Response {
    let notice = if notice.is_empty() {
        String::new()
    } else {
        format!("<p><b>{}</b></p>\n", escape(notice))
    };
    let body = format!(
        "<p>A program asks to act in your name. Go on only if you started it yourself, just now, and it shows this \
         code.</p>\n{notice}\
         <form method=\"post\" action=\"/device\">\n\
         <p><label>Code <input name=\"user_code\" value=\"{}\" autocomplete=\"off\" required></label></p>\n\
         <p><label>Name <input name=\"username\" autocomplete=\"username\" required></label></p>\n\
         <p><label>Password <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required>\
         </label></p>\n\
         <p><button name=\"decision\" value=\"approve\">Let it in</button> \
         <button name=\"decision\" value=\"deny\">Refuse</button></p>\n</form>\n",
        escape(code)
    );
    html(status, "Sign in to Hearth", &body)
}

#[utoipa::path(get, path = "/device", tag = "oauth", params(("user_code" = Option<String>, Query, description = "The code to fill in")),
    responses((status = 200, description = "A page with a form", content_type = "text/html")))]
pub(super) async fn show(query: Result<Query<CodeQuery>, BodyError>) -> Response {
    let code = query.ok().and_then(|query| query.0.user_code).unwrap_or_default();
    form(StatusCode::OK, &code, "")
}

#[utoipa::path(post, path = "/device", tag = "oauth",
    request_body(content = DecisionForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "Decided", content_type = "text/html"),
        (status = 401, description = "Wrong name or password: the form again", content_type = "text/html"),
        (status = 403, description = "From another site", content_type = "text/html"),
        (status = 404, description = "No such code: the form again", content_type = "text/html")))]
pub(super) async fn decide(
    State(aegis): State<Aegis>,
    caller: Caller,
    headers: HeaderMap,
    given: Result<Form<DecisionForm>, BodyError>,
) -> Response {
    if !is_same_origin(&headers, &aegis.settings().public_url) {
        return html(
            StatusCode::FORBIDDEN,
            "Refused",
            "<p>This form was sent from another site.</p>\n",
        );
    }
    let Ok(Form(given)) = given else {
        return form(StatusCode::BAD_REQUEST, "", "Fill in all three fields.");
    };
    let decision = match given.decision.as_str() {
        "approve" => Decision::Approve,
        "deny" => Decision::Deny,
        _ => {
            return form(
                StatusCode::BAD_REQUEST,
                &given.user_code,
                "Choose one of the two buttons.",
            );
        }
    };
    let decided = aegis
        .device_decide(
            &given.user_code,
            &given.username,
            &given.password,
            decision,
            caller.origin,
        )
        .await;
    match (decided, decision) {
        (Ok(()), Decision::Approve) => html(
            StatusCode::OK,
            "Signed in",
            "<p>The program is let in. You can close this page.</p>\n",
        ),
        (Ok(()), Decision::Deny) => html(StatusCode::OK, "Refused", "<p>The program is not let in.</p>\n"),
        (Err(error), _) if matches!(error.kind, ErrorKind::Internal | ErrorKind::DataLoss) => {
            error.into_response()
        }
        (Err(error), _) => form(http_status(error.kind), &given.user_code, &error.to_string()),
    }
}

/// Browsers send the Origin with every POST; what sends none is no browser and carries no one's passwords.
fn is_same_origin(headers: &HeaderMap, public_url: &str) -> bool {
    headers
        .get(header::ORIGIN)
        .is_none_or(|origin| origin.as_bytes() == public_url.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_was_typed_as_text() {
        assert_eq!(
            escape("<a href=\"x\">'&"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;"
        );
    }

    #[test]
    fn other_sites_are_told_apart() {
        let of = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, header::HeaderValue::from_static(origin));
            is_same_origin(&headers, "https://aegis.test")
        };
        assert!(of("https://aegis.test"));
        assert!(is_same_origin(&HeaderMap::new(), "https://aegis.test"));
        for other in [
            "null",
            "https://evil.test",
            "http://aegis.test",
            "https://aegis.test.evil.test",
            "https://aegis.test:1",
        ] {
            assert!(!of(other), "{other}");
        }
    }
}
