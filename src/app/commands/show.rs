//! `models show`: everything that is known of one model, from the catalogue and, where its files are cached, from them.

use std::io::Write;
use std::process::ExitCode;

use crate::app::commands::list::{bytes_in, size};
use crate::catalog::reference::Reference;
use crate::catalog::{self, ModelSpec, SourceSpec};
use crate::cli::{ServeArgs, ShowArgs};
use crate::config::{self, Environment};
use crate::excerpt::quoted;
use crate::load::describe::{Description, describe};
use crate::source::{self, ModelFolder};

/// Prints the model; it need not be cached. Exit 1 when its cached files could not be served.
pub(in crate::app) fn show(args: &ShowArgs, serve: &ServeArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let sources = config::source(&args.source, environment)?;
    let requests = config::requests(serve)?;
    let spec = catalog::resolve(&args.model, &catalogue).map_err(config::ConfigError::from)?;
    let spec = config::in_dtype(spec, args.dtype.as_deref())?;
    let isa = config::batch(serve)?.isa;
    let folder = source::cached(&spec, &sources);
    let mut page = Page(Vec::new());
    page.catalogued(&spec);
    let mut code = ExitCode::SUCCESS;
    match &folder {
        None if spec.sources.iter().all(|source| matches!(source, SourceSpec::Directory { .. })) => {
            page.line("cannot be served", "the folder is not there, or lacks the files of a model".to_owned());
            code = ExitCode::FAILURE;
        }
        None => page.line("cached", "no; `embedserve models pull` fetches it".to_owned()),
        Some(folder) => {
            page.cached(folder);
            match describe(&spec, &folder.path, &requests, isa) {
                Ok(description) => page.described(&description),
                Err(error) => {
                    page.line("cannot be served", error.to_string());
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    page.line("example", example(&spec));
    let mut out = std::io::stdout().lock();
    let width = page.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, text) in &page.0 {
        writeln!(out, "{name:width$}  {text}")?;
    }
    Ok(code)
}

/// Lines of a name and a text; the name is left out where it repeats.
struct Page(Vec<(&'static str, String)>);

impl Page {
    fn line(&mut self, name: &'static str, text: String) {
        self.0.push((name, text));
    }

    fn lines(&mut self, name: &'static str, texts: impl IntoIterator<Item = String>) {
        for (index, text) in texts.into_iter().enumerate() {
            self.line(if index == 0 { name } else { "" }, text);
        }
    }

    fn some<T: ToString>(&mut self, name: &'static str, value: Option<&T>) {
        self.lines(name, value.map(ToString::to_string));
    }

    fn catalogued(&mut self, spec: &ModelSpec) {
        self.line("model", spec.id.clone());
        self.some("description", spec.description.as_ref());
        if !spec.aliases.is_empty() {
            self.line("aliases", spec.aliases.join(", "));
        }
        self.some("licence", spec.license.as_ref());
        if !spec.languages.is_empty() {
            self.line("languages", spec.languages.join(", "));
        }
        self.lines("source", spec.sources.iter().map(source_text));
        self.some("architecture", spec.architecture.as_ref());
        self.line("dtype", spec.precision().to_string());
        self.some("dimensions", spec.dimensions.as_ref());
        if !spec.matryoshka_dimensions.is_empty() {
            let lengths: Vec<String> = spec.matryoshka_dimensions.iter().map(ToString::to_string).collect();
            self.line("matryoshka", lengths.join(", "));
        }
        self.some("tokens at most", spec.max_tokens.as_ref());
        self.lines("prompt", spec.prompts.iter().map(|(name, text)| format!("{name} = {text:?}")));
        self.some("default prompt", spec.default_prompt_name.as_ref());
        self.lines("reference", spec.references.iter().map(reference_text));
    }

    fn cached(&mut self, folder: &ModelFolder) {
        let revision = folder.revision.as_deref().map_or_else(String::new, |revision| format!(", revision {revision}"));
        let size = size(bytes_in(&folder.path));
        self.line("cached", format!("{size} from {}{revision}, in {}", folder.source, folder.path.display()));
    }

    /// What serving would do with the cached files.
    fn described(&mut self, description: &Description) {
        let Description { architecture, limits, pooling, is_normalized, include_prompt, precision, weight_bytes } =
            description;
        let length = if *is_normalized { "length 1" } else { "any length" };
        let cut = if limits.matryoshka { ", or shorter with `dimensions`" } else { "" };
        self.line("serves", format!("{architecture}, pooling {pooling}, vectors of {length}"));
        self.line("", format!("{} values{cut}", limits.dimensions));
        self.line("", format!("{} tokens at most, special tokens included", limits.max_tokens));
        self.lines("its prompts", limits.prompts.named.iter().map(|(name, text)| format!("{name} = {text:?}")));
        if !limits.prompts.default.is_empty() {
            self.line("default prompt", format!("{:?}", limits.prompts.default));
        }
        if !include_prompt {
            self.line("", "pooling leaves the prompt out".to_owned());
        }
        self.line("memory", format!("{} for the weights, in {precision}", size(*weight_bytes)));
    }
}

fn source_text(source: &SourceSpec) -> String {
    match source {
        SourceSpec::Hub { repo, revision, .. } => format!("hub {}@{}", repo.as_str(), revision.as_str()),
        SourceSpec::Wheel { package, version, .. } => format!("wheel {package} {version}"),
        SourceSpec::Directory { path } => format!("directory {}", path.display()),
    }
}

fn reference_text(reference: &Reference) -> String {
    format!("{}, {}", quoted(&reference.text), reference.published)
}

fn example(spec: &ModelSpec) -> String {
    let role = if spec.prompts.iter().any(|(name, _)| name == "query") { r#", "input_type": "query""# } else { "" };
    format!(
        "curl http://127.0.0.1:8080/v1/embeddings -H 'Content-Type: application/json' \
         -d '{{\"model\": \"{}\", \"input\": \"hello world\"{role}}}'",
        spec.id
    )
}
