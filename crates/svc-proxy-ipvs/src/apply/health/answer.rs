//! What load balancers are told, in kube-proxy's words: `pkg/proxy/healthcheck`, with the state of each family
//! that kubernetes/kubernetes#129271 added.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use common_informer::object::{Family, ObjectKey};
use node_runtime::health::HealthReport;
use node_runtime::http::{HeaderName, HeaderValue, Page, StatusCode, header};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// How long the proxy may fall behind before load balancers turn away from the node. K8S: kube-proxy allows
/// two of its sync periods of 30 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// K8S: for load balancers that weigh nodes by their endpoints.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// K8S: how Go writes the time that is none.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Whether what Services ask for reaches the kernel: syncs neither fail nor hang for as long as
/// [`PATIENCE`]. K8S: a proxy that starts up is healthy, since what the one before it left in the kernel still serves.
pub(super) fn is_healthy(report: &HealthReport) -> bool {
    let is_behind = |time: Duration| time >= PATIENCE;
    let hangs = report.waiting_for.is_none() && is_behind(report.since_iteration);
    report.live && !hangs && !report.failing_for.is_some_and(is_behind)
}

/// The answer for a Service that has so many endpoints on this node.
pub(super) fn of_service(service: &ObjectKey, local: usize, healthy: bool) -> Page {
    let check = ServiceCheck {
        service: Name { namespace: &service.namespace, name: &service.name },
        local_endpoints: local,
        service_proxy_healthy: healthy,
    };
    // K8S: kube-proxy's text is indented by tabs, and has no end of line.
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
    let written = check.serialize(&mut serializer);
    page(written.map(|()| text), local > 0 && healthy).with_header(WEIGHT, HeaderValue::from(local))
}

/// The answer for the proxy as a whole: `/healthz`, which takes the node into account, if `eligible` is
/// given, else `/livez`.
pub(super) fn of_proxy(
    report: &HealthReport,
    now: SystemTime,
    families: &[Family],
    eligible: Option<bool>,
) -> Page {
    let healthy = is_healthy(report);
    let is_ok = healthy && eligible.unwrap_or(true);
    let updated = report.since_success.and_then(|age| now.checked_sub(age));
    let last_updated = updated.map_or_else(|| NEVER.to_owned(), timestamp);
    let of_family = |family: &Family| {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        (name, FamilyCheck { last_updated: last_updated.clone(), healthy })
    };
    // K8S: families are named from their first update on.
    let status = if updated.is_some() { families.iter().map(of_family).collect() } else { BTreeMap::new() };
    let check = ProxyCheck {
        // K8S: for those who knew it when every update counted, also those that changed nothing.
        last_updated: if is_ok { timestamp(now) } else { last_updated },
        current_time: timestamp(now),
        node_eligible: eligible,
        healthy,
        status,
    };
    page(serde_json::to_vec(&check), is_ok)
}

fn page(json: serde_json::Result<Vec<u8>>, is_ok: bool) -> Page {
    let status = if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match json {
        Ok(json) => nosniff(Page::new(status, "application/json", json)),
        Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// With the header that kube-proxy's answers have, so that browsers take them for what they say they are.
pub(super) fn nosniff(page: Page) -> Page {
    page.with_header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

/// LIMIT: a clock from before 1970 shows as 1970.
fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time.max(SystemTime::UNIX_EPOCH)).to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceCheck<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyCheck {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyCheck>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyCheck {
    last_updated: String,
    healthy: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use node_runtime::Health;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);
    const SECOND: Duration = Duration::from_secs(1);
    const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

    fn text(page: &Page) -> &str {
        std::str::from_utf8(&page.body).unwrap()
    }

    #[test]
    fn a_service_is_answered_for_to_the_byte_as_by_kube_proxy() {
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        let page = of_service(&key, 300, true);
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                        \"localEndpoints\": 300,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(text(&page), expected);
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(page.headers[1], (WEIGHT, HeaderValue::from_static("300")));
    }

    #[test]
    fn a_service_is_up_only_with_endpoints_here_and_a_healthy_proxy() {
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        let status = |local, healthy| of_service(&key, local, healthy).status.as_u16();
        let all = [status(0, true), status(1, false), status(0, false), status(1, true)];
        assert_eq!(all, [503, 503, 503, 200]);
    }

    #[test]
    fn a_proxy_is_unhealthy_once_its_syncs_fail_for_too_long_and_healthy_from_the_next_success_on() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        let healthy = |at: Instant| {
            health.iteration_finished(at);
            is_healthy(&health.report(at))
        };
        assert!(healthy(start), "starting up");
        health.sync_succeeded(start);
        let failed = start + LIMIT;
        health.sync_failed(failed, "EPERM");
        assert!(healthy(failed + PATIENCE - SECOND));
        health.sync_failed(failed + PATIENCE - SECOND, "EPERM");
        assert!(!healthy(failed + PATIENCE), "the first failure counts");
        health.sync_succeeded(failed + PATIENCE);
        assert!(healthy(failed + PATIENCE));
    }

    #[test]
    fn a_first_sync_that_takes_long_is_no_illness_but_a_later_one_is() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        assert!(is_healthy(&health.report(start + PATIENCE)));
        assert!(!is_healthy(&health.report(start + LIMIT + SECOND)), "it hangs");
        health.sync_succeeded(start);
        assert!(is_healthy(&health.report(start + PATIENCE - SECOND)));
        assert!(!is_healthy(&health.report(start + PATIENCE)));
    }

    #[test]
    fn the_proxy_is_answered_for_as_by_kube_proxy() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let current = "2023-11-14T22:13:20.000000000Z";
        let page = of_proxy(&health.report(start), now, &FAMILIES, Some(true));
        let expected = format!(
            "{{\"lastUpdated\":\"{current}\",\"currentTime\":\"{current}\",\
             \"nodeEligible\":true,\"healthy\":true}}"
        );
        assert_eq!((page.status, text(&page)), (StatusCode::OK, &*expected));
        health.sync_failed(start, "EPERM");
        let never = of_proxy(&health.report(start + PATIENCE), now, &FAMILIES, None);
        let expected =
            format!("{{\"lastUpdated\":\"{NEVER}\",\"currentTime\":\"{current}\",\"healthy\":false}}");
        assert_eq!((never.status, text(&never)), (StatusCode::SERVICE_UNAVAILABLE, &*expected));
        health.sync_succeeded(start);
        health.sync_failed(start + SECOND, "EPERM");
        let page = of_proxy(&health.report(start + SECOND + PATIENCE), now, &FAMILIES, None);
        let updated = "2023-11-14T22:12:19.000000000Z";
        let family = format!("{{\"lastUpdated\":\"{updated}\",\"healthy\":false}}");
        let expected = format!(
            "{{\"lastUpdated\":\"{updated}\",\"currentTime\":\"{current}\",\"healthy\":false,\
             \"status\":{{\"IPv4\":{family},\"IPv6\":{family}}}}}"
        );
        assert_eq!(text(&page), expected);
    }

    #[test]
    fn a_node_that_is_to_go_fails_healthz_and_not_livez() {
        let start = Instant::now();
        let report = Health::new(start, LIMIT).report(start);
        let page = of_proxy(&report, SystemTime::now(), &FAMILIES, Some(false));
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text(&page).contains("\"nodeEligible\":false,\"healthy\":true"), "{}", text(&page));
        assert_eq!(of_proxy(&report, SystemTime::now(), &FAMILIES, None).status, StatusCode::OK);
    }
}
