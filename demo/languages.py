"""The languages that the survey knows, by a file's extension or, for a few, by its name. The table stands in README.md too."""

import posixpath

EXTENSIONS = {
    "Assembly": "asm s",
    "C": "c h",
    "C#": "cs",
    "C++": "cc cpp cxx hh hpp hxx",
    "CSS": "css less sass scss",
    "Clojure": "clj cljc cljs",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Go": "go",
    "GraphQL": "gql graphql",
    "HTML": "htm html xhtml",
    "Haskell": "hs lhs",
    "JSON": "json jsonl jsonc",
    "Java": "java",
    "JavaScript": "cjs js jsx mjs",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lua": "lua",
    "Markdown": "markdown md mdx",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C": "m mm",
    "PHP": "php",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffers": "proto",
    "Python": "py pyi",
    "R": "r",
    "Ruby": "gemspec rake rb",
    "Rust": "rs",
    "SQL": "sql",
    "SVG": "svg",
    "Scala": "sc scala",
    "Shell": "bash fish ksh sh zsh",
    "Svelte": "svelte",
    "Swift": "swift",
    "TOML": "toml",
    "TeX": "bib sty tex",
    "Terraform": "tf tfvars",
    "Text": "adoc rst text txt",
    "TypeScript": "cts mts ts tsx",
    "Vue": "vue",
    "XML": "xml xsd xsl",
    "YAML": "yaml yml",
    "Zig": "zig",
}
NAMES = {
    "CMakeLists.txt": "CMake", "Dockerfile": "Dockerfile", "GNUmakefile": "Make", "Gemfile": "Ruby", "Makefile": "Make", "Rakefile": "Ruby", "makefile": "Make",
}  # fmt: skip
BY_EXTENSION = {extension: language for language, extensions in EXTENSIONS.items() for extension in extensions.split()}
BY_EXTENSION |= {"cmake": "CMake", "dockerfile": "Dockerfile", "mk": "Make"}
OTHER = "Other"


def language_of(path: str) -> str:
    """The language of a file; `Other` when its name says nothing."""
    name = posixpath.basename(path)
    extension = posixpath.splitext(name)[1].removeprefix(".").lower()
    return NAMES.get(name) or BY_EXTENSION.get(extension, OTHER)
