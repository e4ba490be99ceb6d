# What zsh's line shows once the key is pressed behind it, and before that what it offers, if there is more than one thing.
#   zsh -f press_tab.zsh FOLDER LINE...
# FOLDER holds the completion function, as a package installs it.
zmodload zsh/zpty || exit 1
folder=$1
shift
zpty shell "TERM=dumb zsh -f -i" || exit 1
until_shown() { # TEXT: everything up to it
    local shown= chunk
    while [[ $shown != *${~1}* ]]; do
        zpty -r shell chunk || { print -u2 -r -- "the shell ended: $shown"; exit 1 }
        shown+=$chunk
    done
    print -r -- "$shown"
}
# Ctrl-X shows the line as it is then, and empties it.
zpty -w shell "PROMPT=; unset zle_bracketed_paste; LISTMAX=1000; fpath=(${(q)folder} \$fpath); autoload -Uz compinit; compinit -D -u"
zpty -w shell "show() { zle -I; print -r -- \"[line: \$BUFFER]\"; BUFFER= }; zle -N show"
zpty -w shell "bindkey '^I' complete-word; bindkey '^X' show; print re''ady"
until_shown ready >/dev/null
for line in "$@"; do
    zpty -w -n shell "$line"$'\t\x18'
    until_shown '\[line: *\]'
done
zpty -d shell
