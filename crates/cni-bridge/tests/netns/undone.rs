//! Whatever step of ADD fails, nothing is left.

use cni_bridge::attach::{Attachment, STEPS};
use cni_bridge::conf::{self, NetConf};
use cni_bridge::spec::{Call, CniError, Verb};
use cni_bridge::steps::{self, Step};
use serde_json::json;
use test_netns::Namespace;

use crate::lab::{Lab, links};

fn fail(_: &mut Attachment) -> Result<(), CniError> {
    Err(CniError::other("stopped"))
}

#[test]
fn a_failure_after_any_step_leaves_nothing() {
    let lab = Lab::new();
    let value = lab.conf(json!({
        "ipMasq": true, "hairpinMode": true, "macspoofchk": true, "portIsolation": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let pod = Namespace::new("pod").unwrap();
    for done in 0..=STEPS.len() {
        let call = Call {
            verb: Verb::Add,
            container_id: "a".into(),
            netns: pod.path().to_str().unwrap().into(),
            ifname: "eth0".into(),
            args: Vec::new(),
        };
        let error = lab
            .node
            .run(|| {
                let conf = NetConf::parse(&value, &call).unwrap();
                let ipam = conf::ipam(&value, conf.version, &call).unwrap();
                let mut attachment = Attachment::new(conf, ipam, &call).unwrap();
                let mut list: Vec<Step<Attachment>> = STEPS.into_iter().take(done).collect();
                list.push(Step { name: "fail", run: fail, undo: steps::nothing });
                steps::run(&list, &mut attachment).unwrap_err()
            })
            .unwrap();
        assert_eq!(error.message, "stopped");
        lab.assert_nothing_left(&format!("after {done} steps"));
        assert!(links(&pod).is_empty(), "after {done} steps");
    }
    // The same namespace can be attached still.
    lab.add("a", &pod, &value).success();
}

#[test]
fn an_add_that_is_refused_leaves_the_attachment_that_there_is() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"ipMasq": true}));
    let (pod, _) = lab.pod("a", &conf);
    let before = (lab.links(), lab.reserved(), lab.rules());
    lab.add("a", &pod, &conf).refusal();
    // Another container, in the same namespace.
    lab.add("b", &pod, &conf).refusal();
    assert_eq!((lab.links(), lab.reserved(), lab.rules()), before);
    assert_eq!(links(&pod), ["eth0"]);
}
