//! `cni-bridge exec add|del|check|gc|status --conf FILE --netns PATH --id ID --ifname eth0`: the call of a runtime,
//! from a shell.
//!
//! FILE is a configuration, or a list of them (`.conflist`): of that the first plugin that this program is, with the
//! list's name and version. CHECK wants the result of ADD: `--prev-result FILE`.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::verbs::{self, Program, Streams};

const USAGE: &str = "usage: cni-bridge exec add|del|check|gc|status --conf FILE [--netns PATH] [--id ID] \
                     [--ifname NAME] [--args KEY=VALUE;…] [--prev-result FILE]";
const MISUSE: u8 = 2;

/// Runs a call; returns the exit code.
pub fn run(arguments: &[String], streams: &mut Streams<'_>) -> u8 {
    let (verb, variables, conf) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = writeln!(streams.error, "cni-bridge exec: {error}\n{USAGE}");
            return MISUSE;
        }
    };
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(verb.to_ascii_uppercase()),
        // Nothing is looked for in it.
        "CNI_PATH" => Some("/".to_owned()),
        name => variables.get(name).cloned(),
    };
    let conf = conf.to_string();
    let mut streams = Streams { input: &mut conf.as_bytes(), output: streams.output, error: streams.error };
    verbs::run(Program::Bridge, &variable, &mut streams)
}

type Parsed = (String, BTreeMap<&'static str, String>, Value);

fn parse(arguments: &[String]) -> Result<Parsed, String> {
    let (verb, options) = arguments.split_first().ok_or("no verb")?;
    if !["add", "del", "check", "gc", "status"].contains(&verb.as_str()) {
        return Err(format!("{verb:?} is no verb"));
    }
    let mut variables = BTreeMap::from([("CNI_IFNAME", "eth0".to_owned())]);
    let (mut conf, mut previous) = (None, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let value = options.next().ok_or_else(|| format!("{option} wants a value"))?.clone();
        match option.as_str() {
            "--conf" => conf = Some(value),
            "--prev-result" => previous = Some(value),
            "--netns" => drop(variables.insert("CNI_NETNS", value)),
            "--id" => drop(variables.insert("CNI_CONTAINERID", value)),
            "--ifname" => drop(variables.insert("CNI_IFNAME", value)),
            "--args" => drop(variables.insert("CNI_ARGS", value)),
            _ => return Err(format!("{option:?} is no option")),
        }
    }
    let mut conf = network(&read(&conf.ok_or("--conf is missing")?)?)?;
    if let Some(previous) = previous {
        conf["prevResult"] = read(&previous)?;
    }
    Ok((verb.clone(), variables, conf))
}

fn read(path: &str) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))
}

/// A configuration as a plugin gets it.
fn network(file: &Value) -> Result<Value, String> {
    let Some(plugins) = file.get("plugins").and_then(Value::as_array) else { return Ok(file.clone()) };
    let ours = |plugin: &&Value| matches!(plugin["type"].as_str(), Some("cni-bridge" | "bridge"));
    let mut conf =
        plugins.iter().find(ours).ok_or("no plugin of the list is of type cni-bridge or bridge")?.clone();
    for key in ["name", "cniVersion"] {
        conf[key] = file.get(key).cloned().unwrap_or(json!(""));
    }
    Ok(conf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_of_a_list_gets_its_name_and_version() {
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
            {"type": "portmap"}, {"type": "bridge", "bridge": "br"}]});
        let conf = network(&list).unwrap();
        assert_eq!(conf, json!({"type": "bridge", "bridge": "br", "name": "n", "cniVersion": "1.0.0"}));
        assert!(network(&json!({"plugins": []})).is_err());
    }

    #[test]
    fn what_is_no_call_ends_with_the_usage() {
        for arguments in [&[][..], &["fly"], &["add"], &["add", "--conf"], &["add", "--speed", "9"]] {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            let (mut output, mut error) = (Vec::new(), Vec::new());
            let mut streams = Streams { input: &mut &b""[..], output: &mut output, error: &mut error };
            assert_eq!(run(&arguments, &mut streams), MISUSE);
            assert!(String::from_utf8(error).unwrap().contains("usage:") && output.is_empty());
        }
    }
}
