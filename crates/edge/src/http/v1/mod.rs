//! Version 1 of the API: one file per resource, each endpoint with its wire types, its documentation and its handler.

pub(super) mod accounts;
pub(super) mod agents;
pub(super) mod api_keys;
pub(super) mod audit;
pub(super) mod auth;
pub(super) mod backups;
pub(super) mod clients;
pub(super) mod consumer_groups;
pub(super) mod discovery;
pub(super) mod erasures;
pub(super) mod events;
pub(super) mod journal;
pub(super) mod mails;
pub(super) mod mcp_servers;
pub(super) mod queues;
pub(super) mod roles;
pub(super) mod security;
pub(super) mod tasks;
pub(super) mod teams;
pub(super) mod tenants;
pub(super) mod timeline;
pub(super) mod tools;
pub(super) mod users;
pub(super) mod views;
pub(super) mod virtual_servers;
pub(super) mod work;
