// Command audit_go verifies a Cloister audit bundle with Go's own note and tlog packages: a second reading of the same
// bytes by code that shares nothing with the first.
//
//	audit_go [-log VKEY] [-found FILE] FOLDER
//
// FOLDER holds entries.jsonl, checkpoint, witness_policy.json and log.vkey. FILE is what `cloister audit query --format
// jsonl` printed: each of its entries must be proved under the bundle's root. Prints one JSON object; exit status 1
// unless everything holds.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type report struct {
	Verified     bool   `json:"verified"`
	Entries      int64  `json:"entries"`
	Cosignatures int    `json:"cosignatures"`
	Proofs       int    `json:"proofs"`
	Problem      string `json:"problem"`
}

type policy struct {
	Log       string   `json:"log"`
	Quorum    int      `json:"quorum"`
	Witnesses []string `json:"witnesses"`
}

type line struct {
	Index   *int64          `json:"index"`
	Leaf    json.RawMessage `json:"leaf"`
	Payload json.RawMessage `json:"payload"`
	Salt    *string         `json:"salt"`
	Proof   []tlog.Hash     `json:"proof"`
}

type leaf struct {
	Digests map[string]string `json:"digests"`
	Payload *string           `json:"payload"`
}

type head struct {
	size int64
	root tlog.Hash
}

func main() {
	pin := flag.String("log", "", "the log's key (vkey) that is trusted")
	found := flag.String("found", "", "lines with inclusion proofs, to be checked too")
	flag.Parse()
	result := report{}
	err := errors.New("name one folder")
	if flag.NArg() == 1 {
		err = verify(flag.Arg(0), *pin, *found, &result)
	}
	result.Verified = err == nil
	if err != nil {
		result.Problem = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(result)
	if err != nil {
		os.Exit(1)
	}
}

func verify(folder, pin, found string, result *report) error {
	document, err := os.ReadFile(filepath.Join(folder, "witness_policy.json"))
	if err != nil {
		return err
	}
	var trusted policy
	if err := strict(document, &trusted); err != nil {
		return err
	}
	vkey, err := os.ReadFile(filepath.Join(folder, "log.vkey"))
	if err != nil {
		return err
	}
	if string(vkey) != trusted.Log+"\n" || (pin != "" && pin != trusted.Log) {
		return errors.New("the log's key is another one")
	}
	text, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return err
	}
	head, cosigners, err := open(text, trusted)
	if err != nil {
		return err
	}
	result.Cosignatures = cosigners
	told, err := entries(filepath.Join(folder, "entries.jsonl"), head, result)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(document)
	if told != "sha256:"+hex.EncodeToString(sum[:]) {
		return errors.New("the witness policy is not the one that the log told last")
	}
	if found == "" {
		return nil
	}
	result.Proofs, err = proofs(found, head)
	return err
}

// open gives the head that the log signed and at least a quorum of witnesses cosigned, all of whose lines verify.
func open(text []byte, trusted policy) (head, int, error) {
	log, err := note.NewVerifier(trusted.Log)
	if err != nil {
		return head{}, 0, err
	}
	known := []note.Verifier{log}
	for _, vkey := range trusted.Witnesses {
		witness, err := newWitness(vkey, log.Name())
		if err != nil {
			return head{}, 0, err
		}
		known = append(known, witness)
	}
	faulty := (len(trusted.Witnesses) - 1) / 3
	if len(trusted.Witnesses) == 0 || trusted.Quorum < (len(trusted.Witnesses)+faulty)/2+1 {
		return head{}, 0, errors.New("the policy's quorum is too small")
	}
	opened, err := note.Open(text, note.VerifierList(known...))
	if err != nil {
		return head{}, 0, err
	}
	if len(opened.UnverifiedSigs) != 0 {
		return head{}, 0, errors.New("the checkpoint has a signature that nobody can check")
	}
	lines := strings.Split(string(text[len(opened.Text):]), "\n")
	if len(lines) != len(opened.Sigs)+2 { // note.Open drops a line that is there twice
		return head{}, 0, errors.New("the checkpoint has a signature twice")
	}
	signers := map[string]bool{}
	for _, signature := range opened.Sigs {
		signers[signature.Name] = true
	}
	if !signers[log.Name()] || len(signers) != len(opened.Sigs) {
		return head{}, 0, errors.New("the log did not sign the checkpoint, or somebody twice")
	}
	cosigners := len(signers) - 1
	if cosigners < trusted.Quorum {
		return head{}, 0, fmt.Errorf("%d witnesses cosigned; %d must", cosigners, trusted.Quorum)
	}
	lines = strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != log.Name() || lines[3] != "" {
		return head{}, 0, errors.New("the note is not this log's checkpoint")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != lines[1] {
		return head{}, 0, errors.New("the checkpoint's size is no number")
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return head{}, 0, err
	}
	return head{size, root}, cosigners, nil
}

// entries checks every line and that all leaves together have the head's root; the witness policy that the log told last.
func entries(path string, head head, result *report) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for at, index := range indexes {
			hashes[at] = stored[index]
		}
		return hashes, nil
	})
	told := ""
	lines := bufio.NewReaderSize(file, 1<<20)
	for {
		data, err := lines.ReadBytes('\n')
		if err != nil {
			if len(data) != 0 {
				return "", errors.New("the entries do not end in a newline")
			}
			break
		}
		parsed, event, err := read(data[:len(data)-1], result.Entries)
		if err != nil {
			return "", fmt.Errorf("entry %d: %w", result.Entries, err)
		}
		if digest, is := event.Digests["witness_policy"]; is {
			told = digest
		}
		hashes, err := tlog.StoredHashes(result.Entries, parsed.Leaf, reader)
		if err != nil {
			return "", err
		}
		stored = append(stored, hashes...)
		result.Entries++
	}
	if result.Entries != head.size || head.size == 0 {
		return "", fmt.Errorf("%d entries; the checkpoint says %d", result.Entries, head.size)
	}
	root, err := tlog.TreeHash(head.size, reader)
	if err != nil {
		return "", err
	}
	if root != head.root {
		return "", errors.New("the entries do not give the checkpoint's root")
	}
	return told, nil
}

// read takes a line in its one form: the fields in order, nothing between them, the payload the one that was logged.
func read(data []byte, index int64) (line, leaf, error) {
	var parsed line
	var event leaf
	if err := strict(data, &parsed); err != nil {
		return parsed, event, err
	}
	if parsed.Index == nil || *parsed.Index != index || parsed.Leaf == nil || parsed.Proof != nil {
		return parsed, event, errors.New("another index, no leaf, or a proof where none belongs")
	}
	if err := json.Unmarshal(parsed.Leaf, &event); err != nil {
		return parsed, event, err
	}
	form := fmt.Sprintf(`{"index":%d,"leaf":%s`, index, parsed.Leaf)
	if parsed.Salt != nil {
		form += fmt.Sprintf(`,"payload":%s,"salt":"%s"`, parsed.Payload, *parsed.Salt)
	}
	if form+"}" != string(data) {
		return parsed, event, errors.New("the line is not in its one form")
	}
	if parsed.Salt == nil {
		return parsed, event, nil
	}
	salt, err := base64.StdEncoding.Strict().DecodeString(*parsed.Salt)
	if err != nil || len(salt) != 32 {
		return parsed, event, errors.New("the salt is not 32 bytes")
	}
	sum := sha256.Sum256(append(salt, parsed.Payload...))
	if event.Payload == nil || *event.Payload != "sha256:"+hex.EncodeToString(sum[:]) {
		return parsed, event, errors.New("the payload is not the one that was logged")
	}
	return parsed, event, nil
}

// proofs checks the inclusion proof of each entry in a query's answer; how many there were.
func proofs(path string, head head) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	count := 0
	for _, data := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		var parsed line
		if json.Unmarshal(data, &parsed) != nil || parsed.Index == nil {
			continue // the answer's first line tells what the proofs are under
		}
		if err := tlog.CheckRecord(parsed.Proof, head.size, head.root, *parsed.Index, tlog.RecordHash(parsed.Leaf)); err != nil {
			return count, fmt.Errorf("entry %d: %w", *parsed.Index, err)
		}
		count++
	}
	return count, nil
}

func strict(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}
