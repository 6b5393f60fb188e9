package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// The signature types of https://c2sp.org/tlog-cosignature.
const (
	cosignatureV1 = 4
	mldsa44       = 6
)

// A witness verifies cosignatures; it is a note.Verifier.
type witness struct {
	name   string
	hash   uint32
	kind   byte
	public []byte
	origin string
}

func newWitness(vkey, origin string) (note.Verifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("a witness key is no verifier key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) < 33 {
		return nil, errors.New("a witness key is not base64")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	found := witness{parts[0], binary.BigEndian.Uint32(sum[:4]), key[0], key[1:], origin}
	if fmt.Sprintf("%08x", found.hash) != parts[1] {
		return nil, errors.New("a witness key's id is not its key's")
	}
	if found.kind != cosignatureV1 && found.kind != mldsa44 {
		return nil, errors.New("a witness key is of an unknown type")
	}
	if found.kind == cosignatureV1 && len(found.public) != ed25519.PublicKeySize {
		return nil, errors.New("a witness key has another length")
	}
	return &found, nil
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }

func (w *witness) Verify(text, signature []byte) bool {
	if len(signature) < 8 {
		return false
	}
	at := binary.BigEndian.Uint64(signature[:8])
	if at == 0 || at > 1<<63-1 {
		return false
	}
	if w.kind == cosignatureV1 {
		message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)
		return ed25519.Verify(w.public, []byte(message), signature[8:])
	}
	return w.verifyLattice(text, at, signature[8:])
}
