//! What is offered behind one door: names that are unique and stay as they are, and where each leads. Pure.
//!
//! A name is the prefix and the offer's own name with `__` between. Of two offers with one name the earlier server's keeps it;
//! the later one's is put behind its server's name, whatever the prefix. Resources keep their URIs in the same way; a later one
//! is reached as `mcp+SERVER:URI`.

use super::catalogue::Known;
use super::search::ToolIndex;
use super::tasks;
use crate::tools::ToolStatus;
use domain::mcp_server::{McpServer, ServerStatus};
use domain::tool::{Tool, full_name};
use domain::virtual_server::Member;
use engine::Handled;
use gateway::mcp::mirror::{self, Mirrored};
use gateway::mcp::tasks::OLDER;
use gateway::{Offer, Offers};
use kernel::id::{McpServerId, VirtualServerId};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// The way in: everything of the tenant, or a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    /// `/mcp`
    All,
    /// `/mcp/{name}`
    Virtual(VirtualServerId),
}

/// A tool as it is offered.
pub struct OfferedTool {
    /// The name to call it by.
    pub name: String,
    /// Its entry in a list, as JSON.
    pub entry: Box<RawValue>,
    pub(crate) tool: Arc<Handled<Tool>>,
    /// Whether its server answers now.
    pub status: ToolStatus,
    /// Arguments that clients say in headers too.
    pub mirrored: Vec<Mirrored>,
    /// Whether a client of 2025-11-25 may have its server make tasks of calls.
    pub makes_tasks: bool,
}

impl OfferedTool {
    /// The server's name, and the tool's name there.
    pub fn origin(&self) -> (&str, &str) {
        (&self.tool.state.server, &self.tool.state.manifest.tool)
    }

    /// Whether it is what was approved, and listed: it is offered also while its server does not answer.
    pub fn is_offered(&self) -> bool {
        matches!(self.status, ToolStatus::Ready | ToolStatus::Unavailable)
    }
}

/// A prompt, resource or template as it is offered.
pub struct Offered {
    /// The name, URI or template to ask for it by.
    pub name: String,
    /// Its entry in a list, as JSON.
    pub entry: Box<RawValue>,
    pub(crate) server: McpServerId,
    /// Its name at its server.
    pub(crate) own: String,
}

/// A server that takes part.
pub struct Part {
    /// Which.
    pub id: McpServerId,
    /// Its name.
    pub name: String,
    /// How it is.
    pub status: ServerStatus,
    /// Why it failed.
    pub reason: Option<String>,
}

/// Everything behind one door.
#[derive(Default)]
pub struct View {
    /// In the order of their names.
    pub tools: Vec<OfferedTool>,
    /// In the order of their servers.
    pub prompts: Vec<Offered>,
    /// In the order of their servers.
    pub resources: Vec<Offered>,
    /// In the order of their servers.
    pub templates: Vec<Offered>,
    /// Servers that take part.
    pub parts: Vec<Part>,
    /// Whether Keiko's own tools are offered.
    pub built_in: bool,
    /// Differs when the list of tools does.
    pub tools_stamp: u64,
    tools_by_name: BTreeMap<String, usize>,
    index: OnceLock<ToolIndex>,
    prompts_by_name: BTreeMap<String, usize>,
    resources_by_uri: BTreeMap<String, usize>,
}

/// What one member brings.
struct Selected<'a> {
    server: &'a Handled<McpServer>,
    id: McpServerId,
    member: Member,
    offers: Arc<Offers>,
}

impl View {
    /// Puts a view together.
    pub(crate) fn of(known: &Known, door: Door, offers: impl Fn(McpServerId) -> Arc<Offers>) -> View {
        let (members, built_in) = match door {
            // Ids sort by time: what comes later takes no name from what was there.
            Door::All => (known.servers.keys().map(|id| whole(*id)).collect(), true),
            Door::Virtual(id) => match known.virtuals.get(&id) {
                Some(found) => (found.state.profile.members.clone(), found.state.profile.built_in),
                None => (vec![], false),
            },
        };
        let selected: Vec<Selected<'_>> = members
            .into_iter()
            .filter_map(|member| {
                let id = member.server_id;
                Some(Selected { server: known.servers.get(&id)?, id, member, offers: offers(id) })
            })
            .collect();
        let mut view = View { built_in, ..View::default() };
        for one in &selected {
            let state = &one.server.state;
            let (name, reason) = (state.profile.name.clone(), state.reason.clone());
            view.parts.push(Part { id: one.id, name, status: state.status, reason });
        }
        view.add_tools(known, &selected);
        view.add_prompts(&selected);
        view.add_resources(&selected);
        view
    }

    fn add_tools(&mut self, known: &Known, selected: &[Selected<'_>]) {
        let mut of_server: BTreeMap<McpServerId, Vec<&Arc<Handled<Tool>>>> = BTreeMap::new();
        for tool in known.tools.values() {
            of_server.entry(tool.state.server_id).or_default().push(tool);
        }
        let mut taken = BTreeSet::new();
        // What nobody allowed, or is not there any more, takes no name from what is offered.
        for (is_offered, one) in selected.iter().map(|one| (true, one)).chain(selected.iter().map(|one| (false, one))) {
            let mut tools = of_server.get(&one.id).cloned().unwrap_or_default();
            // First listed, first named: a tool that comes later takes no name either.
            tools.sort_by(|a, b| (a.created_at, &a.stream).cmp(&(b.created_at, &b.stream)));
            for tool in tools {
                let own = &tool.state.manifest.tool;
                let status = ToolStatus::of(&tool.state, Some(one.server.state.status));
                let is_wanted = one.member.tools.as_ref().is_none_or(|wanted| wanted.contains(own));
                let is_turn = matches!(status, ToolStatus::Ready | ToolStatus::Unavailable) == is_offered;
                if is_wanted
                    && is_turn
                    && let Some(name) = one.name(own, &mut taken)
                {
                    let version = one.server.state.introduced.as_ref().map(|said| said.protocol_version.as_str());
                    let makes_tasks = version == Some(OLDER) && tasks::support(&tool.state).is_some();
                    let entry = tool_entry(&name, &tool.state, makes_tasks);
                    let mirrored = mirror::of_schema(&tool.state.manifest.input_schema.value()).unwrap_or_default();
                    self.tools.push(OfferedTool { name, entry, tool: tool.clone(), status, mirrored, makes_tasks });
                }
            }
        }
        self.tools.sort_by(|a, b| a.name.cmp(&b.name));
        let mut stamp = Sha256::new();
        for tool in self.tools.iter().filter(|tool| tool.is_offered()) {
            stamp.update(tool.entry.get());
        }
        self.tools_stamp = stamp.finalize()[..8].iter().fold(0, |stamp, byte| (stamp << 8) | u64::from(*byte));
        self.tools_by_name = self.tools.iter().enumerate().map(|(at, tool)| (tool.name.clone(), at)).collect();
    }

    fn add_prompts(&mut self, selected: &[Selected<'_>]) {
        let mut taken = BTreeSet::new();
        for one in selected.iter().filter(|one| one.member.prompts) {
            for offer in &one.offers.prompts {
                if let Some(name) = one.name(&offer.name, &mut taken) {
                    self.prompts.push(offered(one.id, offer, "name", name));
                }
            }
        }
        self.prompts_by_name = self.prompts.iter().enumerate().map(|(at, prompt)| (prompt.name.clone(), at)).collect();
    }

    fn add_resources(&mut self, selected: &[Selected<'_>]) {
        let (mut resources, mut templates) = (BTreeSet::new(), BTreeSet::new());
        for one in selected.iter().filter(|one| one.member.resources) {
            let server = &one.server.state.profile.name;
            let unique = |offer: &Offer, taken: &mut BTreeSet<String>| {
                let later = format!("mcp+{server}:{}", offer.name);
                [offer.name.clone(), later].into_iter().find(|uri| taken.insert(uri.clone()))
            };
            for offer in &one.offers.resources {
                self.resources.extend(unique(offer, &mut resources).map(|uri| offered(one.id, offer, "uri", uri)));
            }
            for offer in &one.offers.templates {
                self.templates.extend(unique(offer, &mut templates).map(|uri| offered(one.id, offer, "uriTemplate", uri)));
            }
        }
        self.resources_by_uri = self.resources.iter().enumerate().map(|(at, found)| (found.name.clone(), at)).collect();
    }

    /// A tool by the name it is offered by.
    pub fn tool(&self, name: &str) -> Option<&OfferedTool> {
        self.tools.get(*self.tools_by_name.get(name)?)
    }

    /// Tools that have any of the words, best first, with their scores.
    pub fn find(&self, query: &str) -> Vec<(&OfferedTool, f64)> {
        let index = self.index.get_or_init(|| ToolIndex::of(&self.tools));
        index.find(query).into_iter().filter_map(|(at, score)| Some((self.tools.get(at)?, score))).collect()
    }

    /// A prompt by the name it is offered by.
    pub(crate) fn prompt(&self, name: &str) -> Option<&Offered> {
        self.prompts.get(*self.prompts_by_name.get(name)?)
    }

    /// Where a URI leads, and what it is called there: a resource that is listed, or one that a template promises.
    pub(crate) fn resource(&self, uri: &str) -> Option<(McpServerId, String)> {
        if let Some(found) = self.resources_by_uri.get(uri).and_then(|at| self.resources.get(*at)) {
            return Some((found.server, found.own.clone()));
        }
        // The one that says most of it: a template for everything takes nothing from others.
        let fitting = self.templates.iter().filter(|template| promises(&template.name, uri));
        let promised = fitting.rev().max_by_key(|template| literal_chars(&template.name))?;
        let own = match promised.name == promised.own {
            true => uri.to_owned(),
            // It is offered behind its server's name: `mcp+SERVER:`.
            false => uri.split_once(':')?.1.to_owned(),
        };
        Some((promised.server, own))
    }

    /// A template by the text it is offered by.
    pub(crate) fn template(&self, text: &str) -> Option<&Offered> {
        self.templates.iter().find(|template| template.name == text)
    }

    /// The name of the server that offers something.
    pub fn server_of(&self, offer: &Offered) -> &str {
        self.part(offer.server).map_or("", |part| &part.name)
    }

    /// A server that takes part.
    pub(crate) fn part(&self, id: McpServerId) -> Option<&Part> {
        self.parts.iter().find(|part| part.id == id)
    }
}

impl Selected<'_> {
    /// The name that an offer gets; `None` when even the full one is taken.
    fn name(&self, own: &str, taken: &mut BTreeSet<String>) -> Option<String> {
        let server = &self.server.state.profile.name;
        let wanted = match self.member.prefix.as_deref() {
            None => full_name(server, own),
            Some("") => own.to_owned(),
            Some(prefix) => full_name(prefix, own),
        };
        [wanted, full_name(server, own)].into_iter().find(|name| taken.insert(name.clone()))
    }
}

/// All of a server.
pub(crate) fn whole(server_id: McpServerId) -> Member {
    Member { server_id, tools: None, prefix: None, prompts: true, resources: true }
}

fn raw<T: Serialize>(value: &T) -> Box<RawValue> {
    // Maps of checked JSON can always be written.
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// A tool's entry as its server listed it, under the name that it has here.
fn tool_entry(name: &str, tool: &Tool, makes_tasks: bool) -> Box<RawValue> {
    let manifest = &tool.manifest;
    let mut entry = Map::from_iter([("name".to_owned(), Value::from(name))]);
    entry.extend(
        (!manifest.description.is_empty()).then(|| ("description".to_owned(), Value::from(manifest.description.clone()))),
    );
    entry.insert("inputSchema".into(), manifest.input_schema.value());
    entry.extend(manifest.output_schema.as_ref().map(|schema| ("outputSchema".to_owned(), schema.value())));
    if let Value::Object(more) = manifest.more.value() {
        entry.extend(more);
    }
    let execution = entry.get_mut("execution").and_then(Value::as_object_mut);
    if let Some(support) = execution.and_then(|execution| execution.get_mut("taskSupport")) {
        // A task that the server insists on is waited for here, where the client wants none.
        *support = if makes_tasks { json!("optional") } else { json!("forbidden") };
    }
    raw(&entry)
}

fn offered(server: McpServerId, offer: &Offer, field: &str, name: String) -> Offered {
    let entry = match offer.entry.value() {
        Value::Object(mut entry) if name != offer.name => {
            entry.insert(field.into(), Value::from(name.clone()));
            raw(&entry)
        }
        _ => raw(&offer.entry),
    };
    Offered { name, entry, server, own: offer.name.clone() }
}

/// How much of a template is not left open.
fn literal_chars(template: &str) -> usize {
    let mut depth = 0_usize;
    let is_literal = |c: &char| match c {
        '{' => {
            depth += 1;
            false
        }
        '}' => {
            depth = depth.saturating_sub(1);
            false
        }
        _ => depth == 0,
    };
    template.chars().filter(is_literal).count()
}

/// Whether a URI may have come of a template (RFC 6570): its texts between the expressions stand in it in order. A template that
/// names no scheme promises nothing: it would catch what belongs to others.
fn promises(template: &str, uri: &str) -> bool {
    let mut texts = vec![];
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        texts.push(text);
        let Some((_, after)) = after.split_once('}') else { return false };
        rest = after;
    }
    if texts.is_empty() {
        return template == uri;
    }
    let (Some(first), last) = (texts.first().filter(|first| first.contains(':')), rest) else { return false };
    let Some(mut left) = uri.strip_prefix(first).and_then(|left| left.strip_suffix(last)) else { return false };
    for text in &texts[1..] {
        match left.find(text) {
            Some(at) => left = &left[at + text.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::mcp_server::{ServerProfile, Transport};
    use domain::tool::{Manifest, tool_id};
    use kernel::{Json, Timestamp};

    fn handled<S>(stream: String, state: S, at: i64) -> Handled<S> {
        Handled { stream, version: 1, position: 1, state: Arc::new(state), created_at: Timestamp(at), updated_at: Timestamp(at) }
    }

    fn server(n: u8) -> McpServerId {
        McpServerId::from_bytes([n; 16])
    }

    fn known(servers: &[(u8, &str, &[&str])]) -> Known {
        let mut known = Known::default();
        for (n, name, tools) in servers {
            let transport =
                Transport::Http { url: "https://tools.example".into(), other_urls: vec![], headers: vec![], oauth: None };
            let profile = ServerProfile { name: (*name).into(), transport };
            let (tuning, circuits) = (Default::default(), vec![]);
            let status = ServerStatus::Ready;
            let state = McpServer {
                profile,
                status,
                reason: None,
                is_locked: false,
                introduced: None,
                tuning,
                circuits,
                client: None,
                is_deleted: false,
            };
            known.servers.insert(server(*n), Arc::new(handled(server(*n).to_string(), state, 0)));
            for (at, tool) in tools.iter().enumerate() {
                let manifest = Manifest {
                    tool: (*tool).into(),
                    description: String::new(),
                    input_schema: Json::empty_object(),
                    output_schema: None,
                    more: Json::empty_object(),
                    hash: "1".into(),
                };
                let state = Tool {
                    server_id: server(*n),
                    server: (*name).into(),
                    manifest,
                    approved: Some("1".into()),
                    is_listed: true,
                    is_deleted: false,
                };
                let id = tool_id(server(*n), tool);
                known.tools.insert(id, Arc::new(handled(id.to_string(), state, at as i64)));
            }
        }
        known
    }

    fn virtually(known: &mut Known, members: Vec<Member>) -> Door {
        let id = VirtualServerId::from_bytes([9; 16]);
        let profile = domain::virtual_server::VirtualServerProfile {
            name: "v".into(),
            description: String::new(),
            members,
            built_in: false,
            allowed: vec![],
        };
        let state = domain::virtual_server::VirtualServer { profile, is_deleted: false };
        known.virtuals.insert(id, Arc::new(handled(id.to_string(), state, 0)));
        Door::Virtual(id)
    }

    fn names(view: &View) -> Vec<&str> {
        view.tools.iter().map(|tool| tool.name.as_str()).collect()
    }

    fn uris(uris: &[&str]) -> Vec<Offer> {
        let offer = |uri: &&str| Offer { name: (*uri).into(), entry: Json::of(&serde_json::json!({ "uri": uri })).unwrap() };
        uris.iter().map(offer).collect()
    }

    #[test]
    fn without_a_selection_everything_is_offered_behind_its_servers_name() {
        let known = known(&[(1, "a", &["read"]), (2, "b", &["read", "write"])]);
        let view = View::of(&known, Door::All, |_| Arc::default());
        assert_eq!(names(&view), ["a__read", "b__read", "b__write"]);
        assert!(view.built_in && view.tool("b__read").is_some() && view.tool("read").is_none());
        assert!(view.tool("a__read").unwrap().entry.get().starts_with(r#"{"inputSchema":{},"name":"a__read""#));
    }

    #[test]
    fn of_two_tools_with_one_name_the_earlier_members_keeps_it() {
        let mut known = known(&[(1, "a", &["read"]), (2, "b", &["read", "write"])]);
        let bare = |n| Member { prefix: Some(String::new()), ..whole(server(n)) };
        let door = virtually(&mut known, vec![bare(2), bare(1)]);
        let view = View::of(&known, door, |_| Arc::default());
        assert_eq!(names(&view), ["a__read", "read", "write"]);
        assert_eq!(view.tool("read").unwrap().tool.state.server, "b");
    }

    #[test]
    fn a_member_brings_only_what_was_selected() {
        let mut known = known(&[(1, "a", &["read", "write"])]);
        let member = Member { tools: Some(vec!["write".into()]), prefix: Some("x".into()), ..whole(server(1)) };
        let door = virtually(&mut known, vec![member, whole(server(7))]);
        let view = View::of(&known, door, |_| Arc::default());
        assert_eq!(names(&view), ["x__write"]);
        assert!(!view.built_in && view.parts.len() == 1);
    }

    #[test]
    fn resources_keep_their_uris_and_a_later_one_is_told_apart() {
        let known = known(&[(1, "a", &[]), (2, "b", &[])]);
        let offers = Arc::new(Offers {
            resources: uris(&["memo:x"]),
            templates: vec![Offer { name: "file:///{path}".into(), entry: Json::empty_object() }],
            ..Offers::default()
        });
        let view = View::of(&known, Door::All, |_| offers.clone());
        assert_eq!(view.resource("memo:x"), Some((server(1), "memo:x".into())));
        assert_eq!(view.resource("mcp+b:memo:x"), Some((server(2), "memo:x".into())));
        assert_eq!(view.resource("file:///etc/hosts"), Some((server(1), "file:///etc/hosts".into())));
        assert_eq!(view.resource("mcp+b:file:///etc"), Some((server(2), "file:///etc".into())));
        assert_eq!(view.resource("memo:y"), None);
        assert!(literal_chars("https://x/{id}/data") > literal_chars("https://{+all}"));
    }

    #[test]
    fn templates_promise_what_fits_them() {
        assert!(promises("test://t/{id}/data", "test://t/123/data") && promises("a:{b}", "a:"));
        for (template, uri) in [("test://t/{id}/data", "test://t/123/other"), ("a", "b"), ("a:{b", "a:{b"), ("{+all}", "x:y")] {
            assert!(!promises(template, uri), "{template} {uri}");
        }
    }
}
